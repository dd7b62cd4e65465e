//! Interim signatures.
use crate::{Device, ErrorKind, GenerationConfig, GenerationOverrides, ModelError};
use std::path::Path;
fn not_yet<T>() -> Result<T, ModelError> {
    Err(ModelError::new(
        ErrorKind::NotSupported,
        "models cannot be loaded yet",
    ))
}
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    Embed,
    Describe,
}
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    Bert,
    Blip,
}
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSummary {
    pub task: Task,
    pub architecture: Architecture,
    pub dimensions: Option<usize>,
    pub parameters: u64,
    pub revision: String,
}
#[derive(Debug)]
pub enum Model {
    Encoder(TextEncoder),
    Captioner(Captioner),
}
pub fn inspect(_directory: &Path) -> Result<ModelSummary, ModelError> {
    not_yet()
}
pub fn load(_directory: &Path, _device: &Device) -> Result<Model, ModelError> {
    not_yet()
}
#[derive(Debug)]
pub struct TextEncoder {
    dimensions: usize,
    max_tokens: usize,
}
#[derive(Debug, Clone)]
pub struct Tokens {
    ids: Vec<u32>,
}
impl Tokens {
    pub fn len(&self) -> usize {
        self.ids.len()
    }
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}
impl TextEncoder {
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }
    pub fn tokenize(&self, _text: &str) -> Result<Tokens, ModelError> {
        not_yet()
    }
    pub fn encode(&self, _batch: &[&Tokens]) -> Result<Vec<Vec<f32>>, ModelError> {
        not_yet()
    }
}
#[derive(Debug)]
pub struct Captioner {}
#[derive(Debug, Clone, Copy)]
pub struct ImageLimits {
    pub max_bytes: u64,
    pub max_pixels: u64,
}
#[derive(Debug, Clone)]
pub struct Pixels {}
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Prompt {}
#[derive(Debug, Clone)]
pub struct EncodedImages {}
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caption {
    pub text: String,
    pub token_ids: Vec<u32>,
}
impl Captioner {
    pub fn preprocess(&self, _bytes: &[u8], _limits: &ImageLimits) -> Result<Pixels, ModelError> {
        not_yet()
    }
    pub fn generation(
        &self,
        _options: &GenerationOverrides,
    ) -> Result<GenerationConfig, ModelError> {
        not_yet()
    }
    pub fn prompt(&self, _prompt: Option<&str>) -> Result<Prompt, ModelError> {
        not_yet()
    }
    pub fn encode_images(&self, _batch: &[&Pixels]) -> Result<EncodedImages, ModelError> {
        not_yet()
    }
    pub fn generate(
        &self,
        _images: &EncodedImages,
        _prompt: &Prompt,
        _config: &GenerationConfig,
        _cancelled: &dyn Fn(usize) -> bool,
    ) -> Result<Vec<Option<Caption>>, ModelError> {
        not_yet()
    }
}
