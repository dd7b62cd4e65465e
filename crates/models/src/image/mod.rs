//! From the bytes of a picture to the input of a vision tower, with the results
//! of Pillow and of transformers' image processors.

mod decode;
mod processor;
mod resample;

pub use decode::ImageLimits;
pub(crate) use processor::ImageProcessor;
pub use processor::Pixels;
