//! Linear layers.

use candle_core::{Device, Result, Tensor};

use crate::checkpoint::{Checkpoint, TensorSpec};
use crate::error::ModelError;

/// `x W^T + b` with W as it is stored, (out, in).
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    pub(crate) fn new(weight: Tensor, bias: Tensor) -> Self {
        Self { weight, bias }
    }

    /// The tensors of a layer called `name`.
    pub(crate) fn specs(name: &str, inputs: usize, outputs: usize) -> [TensorSpec; 2] {
        [
            TensorSpec::new(format!("{name}.weight"), [outputs, inputs]),
            TensorSpec::new(format!("{name}.bias"), [outputs]),
        ]
    }

    pub(crate) fn read(
        checkpoint: &Checkpoint,
        name: &str,
        inputs: usize,
        outputs: usize,
        device: &Device,
    ) -> std::result::Result<Self, ModelError> {
        Self::read_joined(checkpoint, &[name.to_owned()], inputs, outputs, device)
    }

    /// Several layers of one input as one: their outputs lie beside each other.
    pub(crate) fn read_joined(
        checkpoint: &Checkpoint,
        names: &[String],
        inputs: usize,
        outputs: usize,
        device: &Device,
    ) -> std::result::Result<Self, ModelError> {
        let mut weights = Vec::new();
        let mut biases = Vec::new();
        for name in names {
            let [weight, bias] = Self::specs(name, inputs, outputs);
            weights.push(checkpoint.read(weight.name, &weight.shape, device)?);
            biases.push(checkpoint.read(bias.name, &bias.shape, device)?);
        }
        Ok(Self::new(
            Tensor::cat(&weights, 0)?,
            Tensor::cat(&biases, 0)?,
        ))
    }

    pub(crate) fn bias(&self) -> &Tensor {
        &self.bias
    }

    /// `x W^T` of (rows, in), for callers that fuse the bias into what follows.
    pub(crate) fn product(&self, x: &Tensor) -> Result<Tensor> {
        x.matmul(&self.weight.t()?)
    }

    /// (rows, in) to (rows, out).
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.product(x)?.broadcast_add(&self.bias)
    }
}
