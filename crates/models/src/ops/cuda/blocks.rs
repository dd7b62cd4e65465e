//! Layers whose weights lie in blocks of 256 inputs, as GGML's formats `Q4_K` and `Q6_K` have
//! them.

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Result, Tensor};

use super::launch::{Launch, Name, uninitialised};
use super::{FINISH_THREADS, NARROW_OUTPUTS, NARROW_THREADS, aligned};

/// Inputs of a block, and weights that a thread decodes.
const BLOCK_INPUTS: usize = 256;
const THREAD_WEIGHTS: usize = 16;
/// Rows up to which a product decodes the weights as it goes. With more it is quicker to have
/// them as numbers once, and to leave the rest to cuBLAS.
const FEW_ROWS: usize = 64;

/// A weight on a device.
#[derive(Debug)]
pub(crate) struct Blocks {
    /// Row after row.
    bytes: Tensor,
    kernels: Kernels,
    outputs: usize,
    inputs: usize,
}

/// Those of a format.
#[derive(Debug, Clone, Copy)]
struct Kernels {
    dequantize: &'static str,
    narrow: &'static str,
}

impl Blocks {
    /// `bytes` are the blocks of (outputs, inputs), inputs being a multiple of 256.
    pub(crate) fn new(
        bytes: &[u8],
        format: GgmlDType,
        (outputs, inputs): (usize, usize),
        device: &Device,
    ) -> Result<Self> {
        let kernels = match format {
            GgmlDType::Q4K => Kernels {
                dequantize: "dequantize_q4k",
                narrow: "narrow_q4k",
            },
            GgmlDType::Q6K => Kernels {
                dequantize: "dequantize_q6k",
                narrow: "narrow_q6k",
            },
            other => candle_core::bail!("no kernel decodes blocks of {other:?}"),
        };
        let blocks = outputs * (inputs / BLOCK_INPUTS);
        let fits = inputs.is_multiple_of(BLOCK_INPUTS) && blocks > 0;
        if !fits || bytes.len() != blocks * format.type_size() {
            candle_core::bail!("{} bytes of blocks of ({outputs}, {inputs})", bytes.len())
        }
        let bytes = Tensor::from_slice(bytes, bytes.len(), device)?;
        Ok(Self {
            bytes,
            kernels,
            outputs,
            inputs,
        })
    }

    /// `x W^T`: (rows, inputs) to (rows, outputs). The weights are rounded to the type of `x`.
    pub(crate) fn product(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        if width != self.inputs {
            candle_core::bail!("{width} inputs for a layer of {}", self.inputs)
        }
        let short = matches!(x.dtype(), DType::F16 | DType::BF16);
        if short && (1..=FEW_ROWS).contains(&rows) {
            self.narrow(x)
        } else {
            x.contiguous()?.matmul(&self.weights(x.dtype())?.t()?)
        }
    }

    /// The same for few rows of short numbers.
    fn narrow(&self, x: &Tensor) -> Result<Tensor> {
        let (x, rows) = (aligned(x, 8)?, x.dim(0)?);
        // SAFETY: the kernel writes all rows.
        let out = unsafe { uninitialised((rows, self.outputs), x.dtype(), x.device())? };
        let tiles = rows.div_ceil(8).next_power_of_two();
        let launch = Launch::new(&x, Name::Sized(self.kernels.narrow, tiles))?
            .tensor(&x)?
            .bytes(&self.bytes)?
            .tensor(&out)?
            .int(rows)?
            .int(self.inputs)?
            .int(self.outputs)?;
        let blocks = self.outputs.div_ceil(NARROW_OUTPUTS);
        // SAFETY: x has rows of so many inputs, from a multiple of 8 on; the bytes are all blocks
        // of the weight, as checked when it was made, in memory of their own; `tiles` of 8 are
        // enough for the rows, and there are kernels of up to FEW_ROWS / 8.
        unsafe { launch.run((blocks, 1), NARROW_THREADS, 0)? };
        Ok(out)
    }

    /// (outputs, inputs) as numbers.
    pub(crate) fn weights(&self, dtype: DType) -> Result<Tensor> {
        let shape = (self.outputs, self.inputs);
        // SAFETY: the kernel writes all weights.
        let out = unsafe { uninitialised(shape, dtype, self.bytes.device())? };
        let groups = self.outputs * self.inputs / THREAD_WEIGHTS;
        let launch = Launch::new(&out, Name::Plain(self.kernels.dequantize))?
            .bytes(&self.bytes)?
            .tensor(&out)?
            .int(groups)?;
        let blocks = groups.div_ceil(FINISH_THREADS as usize);
        // SAFETY: the bytes are all blocks of the weight, as checked when it was made; threads
        // beyond the groups do nothing.
        unsafe { launch.run((blocks, 1), FINISH_THREADS, 0)? };
        Ok(out)
    }
}
