//! Layer normalisation, alone and fused with what precedes it.

use candle_core::{CpuStorage, CustomOp2, DType, InplaceOp3, Layout, Result, Shape, Tensor};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

use super::{cuda, floats, floats_mut, is_fused, math, rows_per_task};

/// Scale and shift of a normalisation, with the bias of the layer before it.
#[derive(Debug, Clone)]
pub(crate) struct NormParameters {
    /// (3, n): bias to add to the input, scale, shift; in 32-bit floats, as sums
    /// of squares need them.
    stacked: Tensor,
    epsilon: f64,
}

impl NormParameters {
    /// `scale` and `shift` are (n); so is `bias`, which is zero where absent.
    pub(crate) fn new(
        scale: &Tensor,
        shift: &Tensor,
        bias: Option<&Tensor>,
        epsilon: f64,
    ) -> Result<Self> {
        let bias = match bias {
            Some(bias) => bias.clone(),
            None => scale.zeros_like()?,
        };
        Ok(Self {
            stacked: Tensor::stack(&[&bias, scale, shift], 0)?.to_dtype(DType::F32)?,
            epsilon,
        })
    }
}

/// `norm(x + bias + residual)`: the end of a post-norm block.
///
/// `x` and `residual` are (rows, n); `x` may be overwritten, so it must be a
/// result that nothing else uses.
pub(crate) fn add_layer_norm(
    x: Tensor,
    residual: &Tensor,
    parameters: &NormParameters,
) -> Result<Tensor> {
    let (stacked, epsilon) = (&parameters.stacked, parameters.epsilon);
    if let Some(normed) = cuda::norm(&x, Some(residual), stacked, epsilon)? {
        return Ok(normed);
    }
    if !is_fused(&x) {
        return plain(&x, Some(residual), parameters);
    }
    let x = x.contiguous()?;
    let op = AddLayerNorm {
        epsilon: parameters.epsilon as f32,
    };
    x.inplace_op3(&residual.contiguous()?, &parameters.stacked, &op)?;
    Ok(x)
}

/// `norm(x + bias)`, leaving `x` as it is; `x` is (rows, n).
pub(crate) fn layer_norm(x: &Tensor, parameters: &NormParameters) -> Result<Tensor> {
    if let Some(normed) = cuda::norm(x, None, &parameters.stacked, parameters.epsilon)? {
        return Ok(normed);
    }
    if !is_fused(x) {
        return plain(x, None, parameters);
    }
    let op = LayerNorm {
        epsilon: parameters.epsilon as f32,
    };
    x.contiguous()?.apply_op2_no_bwd(&parameters.stacked, &op)
}

fn plain(x: &Tensor, residual: Option<&Tensor>, parameters: &NormParameters) -> Result<Tensor> {
    let (bias, scale, shift) = (
        parameters.stacked.get(0)?,
        parameters.stacked.get(1)?,
        parameters.stacked.get(2)?,
    );
    let dtype = x.dtype();
    let mut x = x.to_dtype(DType::F32)?.broadcast_add(&bias)?;
    if let Some(residual) = residual {
        x = (x + residual.to_dtype(DType::F32)?)?;
    }
    let centred = x.broadcast_sub(&x.mean_keepdim(candle_core::D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(candle_core::D::Minus1)?;
    centred
        .broadcast_div(&(variance + parameters.epsilon)?.sqrt()?)?
        .broadcast_mul(&scale)?
        .broadcast_add(&shift)?
        .to_dtype(dtype)
}

/// Normalises one row in place; `parameters` are bias (unused here), scale, shift.
#[inline(always)]
fn normalise(row: &mut [f32], scale: &[f32], shift: &[f32], epsilon: f32) {
    let n = row.len() as f32;
    let mean = math::sum(row) / n;
    let variance = math::squared_deviation(row, mean) / n;
    let inverse = 1.0 / (variance + epsilon).sqrt();
    for ((x, scale), shift) in row.iter_mut().zip(scale).zip(shift) {
        *x = ((*x - mean) * inverse).mul_add(*scale, *shift);
    }
}

struct AddLayerNorm {
    epsilon: f32,
}

impl InplaceOp3 for AddLayerNorm {
    fn name(&self) -> &'static str {
        "add-layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
        parameters: &CpuStorage,
        parameters_layout: &Layout,
    ) -> Result<()> {
        let residual = floats(residual, residual_layout)?;
        let parameters = floats(parameters, parameters_layout)?;
        let x = floats_mut(x, x_layout)?;
        let n = parameters.len() / 3;
        let (bias, rest) = parameters.split_at(n);
        let (scale, shift) = rest.split_at(n);
        let task = rows_per_task(x.len() / n, n) * n;
        x.par_chunks_mut(task)
            .zip(residual.par_chunks(task))
            .with_max_len(1)
            .for_each(|(rows, residuals)| {
                for (row, residual) in rows.chunks_exact_mut(n).zip(residuals.chunks_exact(n)) {
                    for ((x, residual), bias) in row.iter_mut().zip(residual).zip(bias) {
                        *x += residual + bias;
                    }
                    normalise(row, scale, shift, self.epsilon);
                }
            });
        Ok(())
    }
}

struct LayerNorm {
    epsilon: f32,
}

impl CustomOp2 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        parameters: &CpuStorage,
        parameters_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let parameters = floats(parameters, parameters_layout)?;
        let mut x = floats(x, x_layout)?.to_vec();
        let n = parameters.len() / 3;
        let (bias, rest) = parameters.split_at(n);
        let (scale, shift) = rest.split_at(n);
        let task = rows_per_task(x.len() / n, n) * n;
        x.par_chunks_mut(task).with_max_len(1).for_each(|rows| {
            for row in rows.chunks_exact_mut(n) {
                for (x, bias) in row.iter_mut().zip(bias) {
                    *x += bias;
                }
                normalise(row, scale, shift, self.epsilon);
            }
        });
        Ok((CpuStorage::F32(x), x_layout.shape().clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{difference, values};
    use super::*;

    fn parameters(n: usize) -> NormParameters {
        let (scale, shift) = (values(&[n], 3, 2.0), values(&[n], 4, 1.0));
        NormParameters::new(&scale, &shift, Some(&values(&[n], 5, 1.0)), 1e-12).unwrap()
    }

    #[test]
    fn equals_the_plain_form() {
        for (rows, n) in [(1, 8), (3, 33), (64, 384), (257, 768)] {
            let parameters = parameters(n);
            let x = values(&[rows, n], 1, 3.0);
            let residual = values(&[rows, n], 2, 3.0);
            let expected = plain(&x, Some(&residual), &parameters).unwrap();
            let alone = layer_norm(&x, &parameters).unwrap();
            assert!(difference(&alone, &plain(&x, None, &parameters).unwrap()) < 5e-6);
            let fused = add_layer_norm(x, &residual, &parameters).unwrap();
            assert!(difference(&fused, &expected) < 5e-6, "{rows} x {n}");
        }
    }

    #[test]
    fn a_normalisation_without_bias_adds_none() {
        let (scale, shift) = (values(&[16], 3, 2.0), values(&[16], 4, 1.0));
        let zero = scale.zeros_like().unwrap();
        let without = NormParameters::new(&scale, &shift, None, 1e-5).unwrap();
        let with = NormParameters::new(&scale, &shift, Some(&zero), 1e-5).unwrap();
        let x = values(&[5, 16], 6, 1.0);
        let (a, b) = (layer_norm(&x, &without), layer_norm(&x, &with));
        assert_eq!(difference(&a.unwrap(), &b.unwrap()), 0.0);
    }
}
