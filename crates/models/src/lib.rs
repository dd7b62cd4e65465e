//! Text encoders and image captioners on candle, in the file layouts of Hugging
//! Face. Nothing here knows of PostgreSQL or of the wire protocol.
//!
//! [`inspect`] says what a directory holds and whether it is whole, [`load`] gives
//! a [`TextEncoder`] or a [`Captioner`]; [`open`] is what both begin with. Their numbers are those of
//! sentence-transformers and transformers: the tests compare them.
// A file is mapped and its bytes are read as blocks, and kernels of devices are launched, without
// the compiler's help; nothing else is unsafe.
#![deny(unsafe_code)]

mod activation;
mod bert;
mod blip;
mod captioner;
mod checkpoint;
mod dense;
mod device;
mod error;
mod files;
mod generation;
mod image;
mod instructblip;
mod kv_cache;
mod linear;
mod load;
mod ops;
mod pooling;
mod projection;
mod prompts;
mod quantized;
mod text_encoder;
mod tokenizer;
mod trace;

pub use candle_core::{DType, Device, Tensor};
pub use captioner::{Caption, Captioner, EncodedImages, Prompt};
pub use device::{DeviceMemory, Placement, set_threads};
pub use error::{ErrorKind, ModelError};
pub use generation::{EarlyStopping, GenerationConfig, GenerationOverrides, Watch};
pub use image::{ImageLimits, ImageProcessor, Picture, Pixels};
pub use load::{
    Architecture, Model, ModelSummary, OpenedModel, Task, inspect, load, open, revision,
};
pub use quantized::FourBits;
pub use text_encoder::{TextEncoder, Tokens};
