//! Text encoders and image captioners on candle, in the file layouts of Hugging
//! Face. Nothing here knows of PostgreSQL or of the wire protocol.
#![forbid(unsafe_code)]

mod api;
mod device;
mod error;
pub mod generation;

pub use api::{
    Architecture, Caption, Captioner, EncodedImages, ImageLimits, Model, ModelSummary, Pixels,
    Prompt, Task, TextEncoder, Tokens, inspect, load,
};
pub use candle_core::Device;
pub use device::{device_name, open_device, set_threads};
pub use error::{ErrorKind, ModelError};
pub use generation::{GenerationConfig, GenerationOverrides};
