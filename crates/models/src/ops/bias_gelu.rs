//! Bias and activation after the first linear layer of a feed-forward block.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use super::{floats, floats_mut, math, rows_per_task};

/// `gelu(x + bias)` with the exact (error function) form of GELU.
///
/// `x` is (rows, n) and may be overwritten: it must be a result that nothing
/// else uses. `bias` is (n).
pub(crate) fn bias_gelu(x: Tensor, bias: &Tensor) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return plain(&x, bias);
    }
    let x = x.contiguous()?;
    x.inplace_op2(bias, &BiasGelu)?;
    Ok(x)
}

fn plain(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    x.broadcast_add(bias)?.gelu_erf()
}

struct BiasGelu;

impl InplaceOp2 for BiasGelu {
    fn name(&self) -> &'static str {
        "bias-gelu"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<()> {
        let bias = floats(bias, bias_layout)?;
        let x = floats_mut(x, x_layout)?;
        let n = bias.len();
        let task = rows_per_task(x.len() / n.max(1), n) * n;
        x.par_chunks_mut(task.max(1))
            .with_max_len(1)
            .for_each(|rows| {
                for row in rows.chunks_exact_mut(n) {
                    for (x, bias) in row.iter_mut().zip(bias) {
                        *x = math::gelu(*x + bias);
                    }
                }
            });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{difference, values};
    use super::*;

    #[test]
    fn equals_the_plain_form() {
        for (rows, n) in [(1, 1), (3, 7), (64, 384), (257, 1536)] {
            let x = values(&[rows, n], 1, 8.0);
            let bias = values(&[n], 2, 1.0);
            let expected = plain(&x, &bias).unwrap();
            let fused = bias_gelu(x, &bias).unwrap();
            assert!(difference(&fused, &expected) < 1e-6, "{rows} x {n}");
        }
    }
}
