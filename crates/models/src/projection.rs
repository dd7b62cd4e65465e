//! Linear layers without bias, as language models have them: in full, or in 4 bits.

use candle_core::{Result, Tensor};

use crate::checkpoint::{Checkpoint, TensorSpec};
use crate::device::Placement;
use crate::error::ModelError;
use crate::linear::Linear;
use crate::quantized::{Precision, QuantizedWeight, QuantizedWeights};

/// A layer in a checkpoint. Several weights of one input make one layer: their
/// outputs lie beside each other.
#[derive(Debug, Clone)]
pub(crate) struct ProjectionSpec {
    /// (outputs, inputs) each; at least one.
    pub(crate) parts: Vec<TensorSpec>,
    /// What it is quantized to where it is.
    pub(crate) precision: Precision,
}

impl ProjectionSpec {
    /// `parts` are names below `prefix` with their outputs.
    pub(crate) fn new(prefix: &str, parts: &[(&str, usize)], inputs: usize) -> Self {
        let part = |(name, outputs): &(&str, usize)| {
            TensorSpec::new(format!("{prefix}{name}.weight"), [*outputs, inputs])
        };
        Self {
            parts: parts.iter().map(part).collect(),
            precision: Precision::Weights,
        }
    }

    /// A layer that gives the scores of tokens.
    pub(crate) fn output(weight: TensorSpec) -> Self {
        Self {
            parts: vec![weight],
            precision: Precision::Output,
        }
    }

    /// The name of the first weight.
    pub(crate) fn name(&self) -> &str {
        &self.parts[0].name
    }

    pub(crate) fn inputs(&self) -> usize {
        self.parts[0].shape[1]
    }

    pub(crate) fn outputs(&self) -> usize {
        self.parts.iter().map(|part| part.shape[0]).sum()
    }

    /// Bytes in 4 bits; `None` where it stays as it is.
    pub(crate) fn quantized_bytes(&self) -> Option<u64> {
        self.precision.bytes(self.outputs(), self.inputs())
    }
}

/// Where layers are read from.
pub(crate) struct Projections<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) place: &'a Placement,
    /// Where they are loaded in 4 bits.
    pub(crate) quantized: Option<QuantizedWeights<'a>>,
}

/// `x W^T`.
#[derive(Debug)]
pub(crate) enum Projection {
    Full(Linear),
    Quantized(QuantizedWeight),
}

impl Projections<'_> {
    pub(crate) fn read(
        &self,
        spec: &ProjectionSpec,
    ) -> std::result::Result<Projection, ModelError> {
        let Self {
            checkpoint, place, ..
        } = self;
        if let Some(quantized) = &self.quantized
            && let Some(weight) = quantized.read(spec, &place.device)?
        {
            return Ok(Projection::Quantized(weight));
        }
        let weights = spec
            .parts
            .iter()
            .map(|part| checkpoint.read(&part.name, &part.shape, place))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let weight = match weights.as_slice() {
            [weight] => weight.clone(),
            weights => Tensor::cat(weights, 0)?,
        };
        let bias = Tensor::zeros(weight.dim(0)?, place.dtype, &place.device)?;
        Ok(Projection::Full(Linear::new(&weight, bias)?))
    }
}

impl Projection {
    /// (rows, inputs) to (rows, outputs).
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Full(linear) => linear.product(x),
            Self::Quantized(weight) => weight.product(x),
        }
    }
}
