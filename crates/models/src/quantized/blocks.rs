//! A weight in blocks, and products with it.
#![allow(unsafe_code)]

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::sync::Arc;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::k_quants::{BlockQ4K, BlockQ6K, GgmlType, matmul};
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor};
use memmap2::Mmap;

use crate::ops::{cuda, floats};

/// What a layer is quantized to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Precision {
    /// 4.5 bits an element.
    Weights,
    /// 6.6 bits: of an output layer the differences count.
    Output,
}

impl Precision {
    pub(crate) fn format(self) -> GgmlDType {
        match self {
            Self::Weights => GgmlDType::Q4K,
            Self::Output => GgmlDType::Q6K,
        }
    }

    /// Bytes of a layer; `None` where its inputs do not fill whole blocks, so that it
    /// stays as it is.
    pub(crate) fn bytes(self, outputs: usize, inputs: usize) -> Option<u64> {
        let format = self.format();
        let blocks = inputs / format.block_size() * outputs;
        inputs
            .is_multiple_of(format.block_size())
            .then(|| (blocks * format.type_size()) as u64)
    }
}

/// A file in memory, as far as the system has room for it.
#[derive(Clone)]
pub(crate) struct Mapped(Arc<Mmap>);

impl Mapped {
    pub(super) fn new(file: &File) -> io::Result<Self> {
        // SAFETY: the file gets its name when it is whole, and is then replaced or removed, but
        // never written to. Somebody else who writes into it changes weights; who cuts it short, or
        // a disk that fails later, ends this process at its next use, as with any program that
        // maps weights.
        unsafe { Mmap::map(file) }.map(Arc::new).map(Self)
    }

    /// A part of it; `None` beyond the end.
    pub(super) fn part(&self, range: Range<usize>) -> Option<BlockBytes> {
        self.0.get(range.clone())?;
        Some(BlockBytes::Mapped(self.clone(), range))
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// The blocks of a layer: in the file, or made for this load.
pub(crate) enum BlockBytes {
    Mapped(Mapped, Range<usize>),
    Made(Vec<u8>),
}

impl Deref for BlockBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(file, range) => &file[range.clone()],
            Self::Made(bytes) => bytes,
        }
    }
}

/// A weight in 4 bits, (outputs, inputs). On the CPU not as candle's own `QTensor`, which would
/// keep a second, larger copy of all blocks in another order.
pub(crate) struct QuantizedWeight {
    blocks: Blocks,
    outputs: usize,
    inputs: usize,
}

enum Blocks {
    Host(Precision, BlockBytes),
    Device(cuda::Blocks),
}

impl fmt::Debug for QuantizedWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blocks of ({}, {})", self.outputs, self.inputs)
    }
}

impl QuantizedWeight {
    /// `bytes` are the blocks of (outputs, inputs).
    pub(crate) fn new(
        bytes: BlockBytes,
        precision: Precision,
        (outputs, inputs): (usize, usize),
        device: &Device,
    ) -> Result<Self> {
        if precision.bytes(outputs, inputs) != Some(bytes.len() as u64) {
            candle_core::bail!("{} bytes of blocks of ({outputs}, {inputs})", bytes.len())
        }
        let blocks = if device.is_cpu() {
            Blocks::Host(precision, bytes)
        } else {
            let format = precision.format();
            Blocks::Device(cuda::Blocks::new(
                &bytes,
                format,
                (outputs, inputs),
                device,
            )?)
        };
        Ok(Self {
            blocks,
            outputs,
            inputs,
        })
    }

    /// `x W^T`: (rows, inputs) to (rows, outputs). On the CPU the inputs are rounded to 8 bits, on
    /// other devices the weights to the type of `x`.
    pub(crate) fn product(&self, x: &Tensor) -> Result<Tensor> {
        match &self.blocks {
            Blocks::Device(blocks) => blocks.product(x),
            Blocks::Host(precision, bytes) => {
                let dtype = x.dtype();
                let x = x.to_dtype(DType::F32)?.contiguous()?;
                let product = BlockProduct {
                    precision: *precision,
                    bytes,
                    outputs: self.outputs,
                    inputs: self.inputs,
                };
                x.apply_op1_no_bwd(&product)?.to_dtype(dtype)
            }
        }
    }
}

struct BlockProduct<'a> {
    precision: Precision,
    bytes: &'a [u8],
    outputs: usize,
    inputs: usize,
}

impl CustomOp1 for BlockProduct<'_> {
    fn name(&self) -> &'static str {
        "block-product"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        if width != self.inputs {
            candle_core::bail!("{width} inputs for a layer of {}", self.inputs)
        }
        let (x, sizes) = (floats(x, layout)?, (rows, self.inputs, self.outputs));
        let mut values = vec![0.0; rows * self.outputs];
        match self.precision {
            Precision::Weights => matmul(sizes, x, blocks_of::<BlockQ4K>(self.bytes)?, &mut values),
            Precision::Output => matmul(sizes, x, blocks_of::<BlockQ6K>(self.bytes)?, &mut values),
        }?;
        Ok((CpuStorage::F32(values), Shape::from((rows, self.outputs))))
    }
}

/// Blocks that any bytes may be read as.
///
/// # Safety
/// The type is laid out as in C, and made of numbers alone.
unsafe trait AnyBytes: GgmlType {}

// SAFETY: half numbers and arrays of bytes, `repr(C)`.
unsafe impl AnyBytes for BlockQ4K {}
// SAFETY: arrays of bytes and a half number, `repr(C)`.
unsafe impl AnyBytes for BlockQ6K {}

fn blocks_of<B: AnyBytes>(bytes: &[u8]) -> Result<&[B]> {
    // SAFETY: as of the trait.
    let (before, blocks, after) = unsafe { bytes.align_to::<B>() };
    // Allocators and the file's layout see to it.
    if !(before.is_empty() && after.is_empty()) {
        candle_core::bail!("blocks begin at an odd address or end within one")
    }
    Ok(blocks)
}
