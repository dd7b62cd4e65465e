//! From the bytes of a picture to the input of a vision tower, with the results
//! of Pillow and of transformers' image processors.

mod bmp;
mod decode;
mod fault;
mod gif;
mod jpeg;
mod orientation;
mod pillow;
mod png;
mod processor;
mod resample;
mod tiff;
mod webp;

pub use decode::ImageLimits;
pub use processor::{ImageProcessor, Pixels};
pub use resample::Picture;
