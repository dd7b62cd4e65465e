//! Linear layers.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Device, Layout, Result, Shape, Tensor};

use crate::activation::Activation;
use crate::checkpoint::{Checkpoint, TensorSpec};
use crate::device::Placement;
use crate::error::ModelError;
use crate::ops::{Finish, PackedMatrix, cuda, end_layer, floats, is_fused};

/// `x W^T + b`.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Weight,
    /// (out).
    bias: Tensor,
}

#[derive(Debug)]
enum Weight {
    /// In 32-bit floats on the CPU.
    Packed(PackedMatrix),
    /// Otherwise, as it is stored: (out, in).
    Plain(Tensor),
}

impl Linear {
    /// `weight` is (out, in), `bias` is (out).
    pub(crate) fn new(weight: &Tensor, bias: Tensor) -> Result<Self> {
        let (outputs, inputs) = weight.dims2()?;
        let weight = if is_fused(weight) {
            let values = weight.flatten_all()?.to_vec1()?;
            Weight::Packed(PackedMatrix::new(&values, outputs, inputs))
        } else {
            Weight::Plain(weight.clone())
        };
        Ok(Self { weight, bias })
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
        place: &Placement,
    ) -> std::result::Result<Self, ModelError> {
        Self::read_joined(checkpoint, &[name.to_owned()], inputs, outputs, place)
    }

    /// Several layers of one input as one: their outputs lie beside each other.
    pub(crate) fn read_joined(
        checkpoint: &Checkpoint,
        names: &[String],
        inputs: usize,
        outputs: usize,
        place: &Placement,
    ) -> std::result::Result<Self, ModelError> {
        let mut weights = Vec::new();
        let mut biases = Vec::new();
        for name in names {
            let [weight, bias] = Self::specs(name, inputs, outputs);
            weights.push(checkpoint.read(weight.name, &weight.shape, place)?);
            biases.push(checkpoint.read(bias.name, &bias.shape, place)?);
        }
        Ok(Self::new(
            &Tensor::cat(&weights, 0)?,
            Tensor::cat(&biases, 0)?,
        )?)
    }

    pub(crate) fn bias(&self) -> &Tensor {
        &self.bias
    }

    /// `x W^T` of (rows, in), for callers that fuse the bias into what follows.
    pub(crate) fn product(&self, x: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Packed(matrix) => x.contiguous()?.apply_op1_no_bwd(&Product(matrix)),
            Weight::Plain(weight) => {
                match cuda::narrow(x, weight, None, Activation::Identity, None)? {
                    Some(product) => Ok(product),
                    None => x.contiguous()?.matmul(&weight.t()?),
                }
            }
        }
    }

    /// (rows, in) to (rows, out).
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Packed(matrix) => {
                let op = BiasedProduct {
                    matrix,
                    gelu: false,
                };
                x.contiguous()?.apply_op2_no_bwd(&self.bias, &op)
            }
            Weight::Plain(_) => self.finish(x, Activation::Identity, None),
        }
    }

    /// `x W^T + b + residual`: (rows, in) to (rows, out), like `residual`.
    pub(crate) fn forward_added(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Packed(_) => residual + self.forward(x)?,
            Weight::Plain(_) => self.finish(x, Activation::Identity, Some(residual)),
        }
    }

    /// `activation(x W^T + b) + residual`, with what follows the product in one pass where
    /// the device has a kernel for that.
    fn finish(
        &self,
        x: &Tensor,
        activation: Activation,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        if let Weight::Plain(weight) = &self.weight
            && let Some(finished) = cuda::narrow(x, weight, Some(&self.bias), activation, residual)?
        {
            return Ok(finished);
        }
        end_layer(self.product(x)?, &self.bias, activation, residual)
    }

    /// `activation(x W^T + b)`: (rows, in) to (rows, out).
    pub(crate) fn forward_activated(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        match &self.weight {
            // The usual one is fused.
            Weight::Packed(matrix) if activation == Activation::Gelu => {
                let op = BiasedProduct { matrix, gelu: true };
                x.contiguous()?.apply_op2_no_bwd(&self.bias, &op)
            }
            Weight::Packed(_) => activation.apply(&self.forward(x)?),
            Weight::Plain(_) => self.finish(x, activation, None),
        }
    }

    /// Rows of W, (indices, in): an embedding whose table W is.
    pub(crate) fn rows(&self, indices: &[u32]) -> Result<Tensor> {
        match &self.weight {
            Weight::Packed(matrix) => {
                let mut rows = Vec::with_capacity(indices.len() * matrix.inputs());
                for index in indices {
                    if *index as usize >= matrix.outputs() {
                        candle_core::bail!("row {index} of {}", matrix.outputs())
                    }
                    rows.extend(matrix.row(*index as usize));
                }
                Tensor::from_vec(rows, (indices.len(), matrix.inputs()), &Device::Cpu)
            }
            Weight::Plain(weight) => {
                weight.index_select(&Tensor::new(indices, weight.device())?, 0)
            }
        }
    }
}

struct Product<'a>(&'a PackedMatrix);

impl CustomOp1 for Product<'_> {
    fn name(&self) -> &'static str {
        "product"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        multiply(self.0, x, layout, Finish::Nothing)
    }
}

struct BiasedProduct<'a> {
    matrix: &'a PackedMatrix,
    gelu: bool,
}

impl CustomOp2 for BiasedProduct<'_> {
    fn name(&self) -> &'static str {
        "biased-product"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let bias = floats(bias, bias_layout)?;
        let finish = if self.gelu {
            Finish::BiasGelu(bias)
        } else {
            Finish::Bias(bias)
        };
        multiply(self.matrix, x, layout, finish)
    }
}

fn multiply(
    matrix: &PackedMatrix,
    x: &CpuStorage,
    layout: &Layout,
    finish: Finish<'_>,
) -> Result<(CpuStorage, Shape)> {
    let (rows, inputs) = layout.shape().dims2()?;
    if inputs != matrix.inputs() {
        candle_core::bail!("{inputs} inputs for a layer of {}", matrix.inputs())
    }
    let values = matrix.multiply(floats(x, layout)?, finish);
    let shape = Shape::from((rows, matrix.outputs()));
    Ok((CpuStorage::F32(values), shape))
}
