//! Kernels for NVIDIA devices, in place of the plain forms: each computes in one or two passes
//! over memory what candle's own operations take many for.
//!
//! A function here gives `None` where its kernel does not cover device, type or shape; the
//! caller then takes the plain form.
#![allow(unsafe_code)]

mod launch;

#[cfg(test)]
mod tests;

use candle_core::{DType, Device, Result, Tensor};

use self::launch::{Launch, Name, on_device, uninitialised};
use super::cached_attention::HistoryTable;
use crate::activation::Activation;
use crate::pooling::PoolingMode;

pub(crate) use self::launch::{load, memory, prepare, trim};

/// Threads of a block, by kernel; as in the kernels' files.
const NORM_THREADS: u32 = 128;
const FINISH_THREADS: u32 = 256;
const SINGLE_THREADS: u32 = 256;
const NARROW_THREADS: u32 = 256;
const TOKEN_THREADS: u32 = 256;
/// Queries of a warp of attention, and warps of a block: for sequences of a few tokens, and for
/// longer ones.
const WARP_QUERIES: usize = 16;
const SHORT_WARPS: usize = 1;
const LONG_WARPS: usize = 4;
/// The mean length of sequences, by tokens, up to which they count as short.
const SHORT: usize = 24;
/// Outputs of a block of a narrow layer.
const NARROW_OUTPUTS: usize = 16;
/// Groups of lanes that share the rows of a single query; `GROUPS` in attention.cuh.
const GROUPS: usize = 16;
/// Shared memory that any device gives a block unasked, in bytes, without what kernels declare.
const SHARED_BYTES: usize = 47 * 1024;

/// `norm(x + bias + residual)` of (rows, n); `parameters` are (3, n) in 32-bit floats: bias,
/// scale, shift. With a residual it is written over `x`, which then must be a result that
/// nothing else uses.
pub(super) fn norm(
    x: &Tensor,
    residual: Option<&Tensor>,
    parameters: &Tensor,
    epsilon: f64,
) -> Result<Option<Tensor>> {
    let n = x.dim(candle_core::D::Minus1)?;
    let vectors = n.div_ceil(NORM_THREADS as usize * 4).next_power_of_two();
    if !on_device(x) || !n.is_multiple_of(4) || vectors > 8 {
        return Ok(None);
    }
    let (x, parameters) = (x.contiguous()?, parameters.contiguous()?);
    let out = match residual {
        Some(_) => x.clone(),
        None => uninitialised(x.shape(), x.dtype(), x.device())?,
    };
    let rows = x.elem_count() / n;
    Launch::new(&x, Name::Sized("norm", vectors))?
        .tensor(&x)?
        .optional(residual.map(Tensor::contiguous).transpose()?.as_ref())?
        .tensor(&parameters)?
        .tensor(&out)?
        .int(n)?
        .float(epsilon as f32)
        .run((rows, 1), NORM_THREADS, 0)?;
    Ok(Some(out))
}

/// `activation(x + bias) + residual` of (rows, n). It is written over `x`, which must be a
/// result that nothing else uses.
pub(crate) fn finish(
    x: &Tensor,
    bias: &Tensor,
    activation: Activation,
    residual: Option<&Tensor>,
) -> Result<Option<Tensor>> {
    let (n, count) = (bias.elem_count(), x.elem_count());
    if !on_device(x) || !x.is_contiguous() || u32::try_from(count).is_err() {
        return Ok(None);
    }
    let (bias, residual) = (
        bias.contiguous()?,
        residual.map(Tensor::contiguous).transpose()?,
    );
    let tensors = [Some(x), Some(&bias), residual.as_ref()];
    let vector = [8, 4].into_iter().find(|size| {
        let mut tensors = tensors.iter().flatten();
        n.is_multiple_of(*size) && tensors.all(|tensor| starts_at_multiple(tensor, *size))
    });
    let vector = vector.unwrap_or(1);
    let blocks = (count / vector).div_ceil(FINISH_THREADS as usize);
    Launch::new(x, Name::Sized("finish", vector))?
        .tensor(x)?
        .tensor(&bias)?
        .optional(residual.as_ref())?
        .int(count)?
        .int(n)?
        .int(activation as usize)?
        .run((blocks, 1), FINISH_THREADS, 0)?;
    Ok(Some(x.clone()))
}

/// `activation(x W^T + bias) + residual` for (rows, inputs) of so few rows that the time is that
/// of reading `weight`, (outputs, inputs): cuBLAS takes longer to be called than to compute.
pub(crate) fn narrow(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    activation: Activation,
    residual: Option<&Tensor>,
) -> Result<Option<Tensor>> {
    let (&[rows, inputs], outputs) = (x.dims(), weight.dim(0)?) else {
        return Ok(None);
    };
    // With many outputs more rows are worth the units that multiply whole matrices.
    let few = rows <= 16 || (rows <= 32 && outputs <= 8192);
    let short = matches!(x.dtype(), DType::F16 | DType::BF16);
    if !(on_device(x) && short && few && inputs.is_multiple_of(32) && weight.is_contiguous()) {
        return Ok(None);
    }
    let x = x.contiguous()?;
    if !starts_at_multiple(&x, 8) || !starts_at_multiple(weight, 8) {
        return Ok(None);
    }
    let out = uninitialised((rows, outputs), x.dtype(), x.device())?;
    let tiles = rows.div_ceil(8).next_power_of_two();
    Launch::new(&x, Name::Sized("narrow", tiles))?
        .tensor(&x)?
        .tensor(weight)?
        .optional(bias)?
        .optional(residual.map(Tensor::contiguous).transpose()?.as_ref())?
        .tensor(&out)?
        .int(rows)?
        .int(inputs)?
        .int(outputs)?
        .int(activation as usize)?
        .run((outputs.div_ceil(NARROW_OUTPUTS), 1), NARROW_THREADS, 0)?;
    Ok(Some(out))
}

/// Whether [`attention`] computes heads of this size of (tokens, 3 * hidden).
pub(super) fn covers_attention(qkv: &Tensor, head_size: usize) -> bool {
    let short = matches!(qkv.dtype(), DType::F16 | DType::BF16);
    on_device(qkv) && short && head_size.is_multiple_of(8) && head_size <= 128
}

/// What the blocks of [`attention`] compute.
#[derive(Debug)]
pub(super) struct Tiles {
    /// (blocks, 3): the first token of a sequence, its length, and the block's first query in it.
    blocks: Tensor,
    warps: usize,
}

impl Tiles {
    /// For sequences of these lengths, one behind the other.
    pub(super) fn new(lengths: &[usize], device: &Device) -> Result<Self> {
        let squares: usize = lengths.iter().map(|length| length * length).sum();
        let warps = if squares <= SHORT * lengths.iter().sum::<usize>() {
            SHORT_WARPS
        } else {
            LONG_WARPS
        };
        let mut blocks = Vec::new();
        let mut start = 0;
        for length in lengths {
            for first in (0..*length).step_by(warps * WARP_QUERIES) {
                blocks.extend([start, *length, first].map(|number| number as u32));
            }
            start += length;
        }
        let shape = (blocks.len() / 3, 3);
        let blocks = Tensor::from_vec(blocks, shape, device)?;
        Ok(Self { blocks, warps })
    }
}

/// Attention within sequences: `qkv` is (tokens, 3 * hidden) without its bias, `bias` is
/// (3 * hidden); `distances` is (heads, 2 * positions - 1).
pub(super) fn attention(
    qkv: &Tensor,
    bias: &Tensor,
    distances: Option<(&Tensor, usize)>,
    tiles: &Tiles,
    heads: usize,
) -> Result<Tensor> {
    let (tokens, hidden) = (qkv.dim(0)?, qkv.dim(1)? / 3);
    let head_size = hidden / heads;
    let padded = [16, 32, 64, 96, 128]
        .into_iter()
        .find(|padded| head_size <= *padded);
    let Some(padded) = padded else {
        candle_core::bail!("no kernel has heads of {head_size} components")
    };
    let qkv = qkv.contiguous()?;
    let out = uninitialised((tokens, hidden), qkv.dtype(), qkv.device())?;
    let kernel = match tiles.warps {
        SHORT_WARPS => "attention_short",
        _ => "attention",
    };
    Launch::new(&qkv, Name::Sized(kernel, padded))?
        .tensor(&qkv)?
        .tensor(bias)?
        .optional(distances.map(|(table, _)| table))?
        .tensor(&tiles.blocks)?
        .tensor(&out)?
        .int(hidden)?
        .int(head_size)?
        .int(distances.map_or(0, |(_, positions)| positions))?
        .float((head_size as f32).powf(-0.5))
        .run((tiles.blocks.dim(0)?, heads), 32 * tiles.warps as u32, 0)?;
    Ok(out)
}

/// Whether [`attend`] computes heads of this size with numbers like those of `x`, each query to
/// so many rows.
pub(super) fn covers_single(x: &Tensor, head_size: usize, rows: usize) -> bool {
    let fits = shared_bytes(head_size, rows) <= SHARED_BYTES;
    on_device(x) && head_size.is_multiple_of(4) && head_size <= 256 && fits
}

/// What a block of [`attend`] needs: a number for each row, and the parts of the result.
fn shared_bytes(head_size: usize, rows: usize) -> usize {
    (rows.next_multiple_of(4) + GROUPS * head_size) * size_of::<f32>()
}

/// Attention of single queries to the rows of `keys` and `values`, (rows, hidden), that the
/// table names. `queries` are (queries, hidden) without their bias, (hidden), where they have
/// one; they may be a part of longer rows. With `append` both have keys and values of the new
/// rows behind them, 3 * hidden each: they are written to the last row of each query first.
pub(super) fn attend(
    queries: &Tensor,
    bias: Option<&Tensor>,
    keys: &Tensor,
    values: &Tensor,
    table: &HistoryTable,
    heads: usize,
    append: bool,
) -> Result<Tensor> {
    let (count, hidden) = (queries.dim(0)?, keys.dim(1)?);
    let head_size = hidden / heads;
    let &[stride, 1] = queries.stride() else {
        candle_core::bail!("the components of a query must lie beside each other")
    };
    let aligned = stride.is_multiple_of(4) && starts_at_multiple(queries, 4);
    if !(aligned && keys.is_contiguous() && values.is_contiguous()) {
        candle_core::bail!("queries, keys and values do not lie as a kernel needs them")
    }
    let (rows, ends) = table.on_device(queries.device())?;
    if ends.dim(0)? != count {
        candle_core::bail!("the table is not of {count} queries")
    }
    let registers = head_size.div_ceil(64).next_power_of_two();
    let out = uninitialised((count, hidden), queries.dtype(), queries.device())?;
    Launch::new(queries, Name::Sized("single", registers))?
        .tensor(queries)?
        .int(stride)?
        .optional(bias)?
        .tensor(keys)?
        .tensor(values)?
        .tensor(rows)?
        .tensor(ends)?
        .tensor(&out)?
        .int(hidden)?
        .int(head_size)?
        .float((head_size as f32).powf(-0.5))
        .int(usize::from(append))?
        .run(
            (count, heads),
            SINGLE_THREADS,
            shared_bytes(head_size, table.longest()),
        )?;
    Ok(out)
}

/// One vector for each text, (texts, modes * width) in 32-bit floats, of `hidden`, (tokens,
/// width). A text has the tokens of its range, one at least.
pub(crate) fn pool(
    hidden: &Tensor,
    ranges: &[(usize, usize)],
    modes: &[PoolingMode],
) -> Result<Option<Tensor>> {
    if !on_device(hidden) {
        return Ok(None);
    }
    let (hidden, width) = (hidden.contiguous()?, hidden.dim(1)?);
    let bounds = ranges.iter().flat_map(|range| [range.0, range.1]);
    let bounds: Vec<u32> = bounds.map(|bound| bound as u32).collect();
    let bounds = Tensor::new(bounds, hidden.device())?;
    let out_width = modes.len() * width;
    let out = uninitialised((ranges.len(), out_width), DType::F32, hidden.device())?;
    for (index, mode) in modes.iter().enumerate() {
        Launch::new(&hidden, Name::Plain("pool"))?
            .tensor(&hidden)?
            .tensor(&bounds)?
            .tensor(&out.narrow(1, index * width, width)?)?
            .int(width)?
            .int(out_width)?
            .int(*mode as usize)?
            .run((ranges.len(), 1), FINISH_THREADS, 0)?;
    }
    Ok(Some(out))
}

/// The first of the largest scores in each row of (rows, tokens), but for the token
/// `forbidden`; `u32::MAX` where a score is not a number.
pub(crate) fn likeliest(scores: &Tensor, forbidden: Option<u32>) -> Result<Option<Vec<u32>>> {
    if !on_device(scores) {
        return Ok(None);
    }
    let (rows, tokens) = scores.dims2()?;
    let scores = scores.contiguous()?;
    let out = uninitialised(rows, DType::U32, scores.device())?;
    Launch::new(&scores, Name::Plain("likeliest"))?
        .tensor(&scores)?
        .tensor(&out)?
        .int(tokens)?
        .unsigned(forbidden.unwrap_or(u32::MAX))
        .run((rows, 1), TOKEN_THREADS, 0)?;
    Ok(Some(out.to_vec1()?))
}

fn starts_at_multiple(tensor: &Tensor, of: usize) -> bool {
    tensor.layout().start_offset().is_multiple_of(of)
}
