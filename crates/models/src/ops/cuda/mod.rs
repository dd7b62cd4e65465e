//! Kernels for NVIDIA devices, in place of the plain forms: each computes in one or two passes
//! over memory what candle's own operations take many for.
//!
//! A function here gives `None` where its kernel does not cover device, type or shape; the
//! caller then takes the plain form.
#![allow(unsafe_code)]

mod launch;

#[cfg(test)]
mod tests;

use candle_core::{DType, Result, Tensor};

use self::launch::{Launch, Name, on_device, uninitialised};
use super::cached_attention::HistoryTable;
use crate::activation::Activation;
use crate::pooling::PoolingMode;

pub(crate) use self::launch::{load, memory, prepare, trim};

/// Threads of a block of most kernels; `NORM_THREADS`, `WARPS` and `SINGLE_THREADS` in kernels.cu.
const NORM_THREADS: u32 = 128;
const FINISH_THREADS: u32 = 256;
const ATTENTION_THREADS: u32 = 128;
const SINGLE_THREADS: u32 = 256;
/// Queries of a block of attention; `TILE` in kernels.cu.
pub(super) const QUERIES: usize = 64;
/// Groups of lanes that share the rows of a single query; `GROUPS` in kernels.cu.
const GROUPS: usize = 16;
/// Shared memory that any device gives a block unasked, in bytes, without what kernels declare.
const SHARED_BYTES: usize = 47 * 1024;

/// `norm(x + bias + residual)` of (rows, n); `parameters` are (3, n) in 32-bit floats: bias,
/// scale, shift.
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
    let out = uninitialised(x.shape(), x.dtype(), x.device())?;
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
    let vector = [8, 4, 1].into_iter().find(|size| n.is_multiple_of(*size));
    let vector = vector.unwrap_or(1);
    let blocks = (count / vector).div_ceil(FINISH_THREADS as usize);
    Launch::new(x, Name::Sized("finish", vector))?
        .tensor(x)?
        .tensor(&bias.contiguous()?)?
        .optional(residual.map(Tensor::contiguous).transpose()?.as_ref())?
        .int(count)?
        .int(n)?
        .int(activation as usize)?
        .run((blocks, 1), FINISH_THREADS, 0)?;
    Ok(Some(x.clone()))
}

/// Whether [`attention`] computes heads of this size of (tokens, 3 * hidden).
pub(super) fn covers_attention(qkv: &Tensor, head_size: usize) -> bool {
    let short = matches!(qkv.dtype(), DType::F16 | DType::BF16);
    on_device(qkv) && short && head_size.is_multiple_of(8) && head_size <= 128
}

/// Attention within sequences: `qkv` is (tokens, 3 * hidden) without its bias, `bias` is
/// (3 * hidden); `distances` is (heads, 2 * positions - 1). `tiles` is (blocks, 3): the first
/// token of a sequence, its length, and the first of [`QUERIES`] queries in it.
pub(super) fn attention(
    qkv: &Tensor,
    bias: &Tensor,
    distances: Option<(&Tensor, usize)>,
    tiles: &Tensor,
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
    Launch::new(&qkv, Name::Sized("attention", padded))?
        .tensor(&qkv)?
        .tensor(bias)?
        .optional(distances.map(|(table, _)| table))?
        .tensor(tiles)?
        .tensor(&out)?
        .int(hidden)?
        .int(head_size)?
        .int(distances.map_or(0, |(_, positions)| positions))?
        .float((head_size as f32).powf(-0.5))
        .run((tiles.dim(0)?, heads), ATTENTION_THREADS, 0)?;
    Ok(out)
}

/// Attention of single queries, (queries, hidden), to the rows of `keys` and `values` that the
/// table names. The queries may be a part of longer rows.
pub(super) fn cached_attention(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    table: &HistoryTable,
    heads: usize,
) -> Result<Option<Tensor>> {
    let (count, hidden) = queries.dims2()?;
    let head_size = hidden / heads;
    let registers = head_size.div_ceil(64).next_power_of_two();
    let shared = (table.longest().next_multiple_of(4) + GROUPS * head_size) * size_of::<f32>();
    let [stride, 1] = *queries.stride() else {
        return Ok(None);
    };
    let aligned =
        head_size.is_multiple_of(4) && stride.is_multiple_of(4) && starts_at_multiple(queries, 4);
    let whole = keys.is_contiguous() && values.is_contiguous();
    if !(on_device(queries) && aligned && whole && registers <= 4 && shared <= SHARED_BYTES) {
        return Ok(None);
    }
    let (rows, ends) = table.on_device(queries.device())?;
    if ends.dim(0)? != count {
        candle_core::bail!("the table is not of {count} queries")
    }
    let out = uninitialised((count, hidden), queries.dtype(), queries.device())?;
    Launch::new(queries, Name::Sized("single", registers))?
        .tensor(queries)?
        .int(stride)?
        .tensor(keys)?
        .tensor(values)?
        .tensor(rows)?
        .tensor(ends)?
        .tensor(&out)?
        .int(hidden)?
        .int(head_size)?
        .float((head_size as f32).powf(-0.5))
        .run((count, heads), SINGLE_THREADS, shared)?;
    Ok(Some(out))
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
        .run((rows, 1), SINGLE_THREADS, 0)?;
    Ok(Some(out.to_vec1()?))
}

fn starts_at_multiple(tensor: &Tensor, of: usize) -> bool {
    tensor.layout().start_offset().is_multiple_of(of)
}
