//! The normalisation of Llama and T5.

use candle_core::{Result, Tensor};

use crate::checkpoint::{Checkpoint, TensorSpec};
use crate::device::Placement;
use crate::error::ModelError;

/// `x / sqrt(mean(x^2) + epsilon) * scale` (Zhang and Sennrich 2019).
#[derive(Debug)]
pub(super) struct RmsNorm {
    /// (hidden).
    scale: Tensor,
    epsilon: f32,
}

impl RmsNorm {
    pub(super) fn read(
        spec: &TensorSpec,
        epsilon: f64,
        checkpoint: &Checkpoint,
        place: &Placement,
    ) -> std::result::Result<Self, ModelError> {
        Ok(Self {
            scale: checkpoint.read(&spec.name, &spec.shape, place)?,
            epsilon: epsilon as f32,
        })
    }

    /// (tokens, hidden) to the same.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        candle_nn::ops::rms_norm(&x.contiguous()?, &self.scale, self.epsilon)
    }
}
