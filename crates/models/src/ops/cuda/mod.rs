//! Kernels for NVIDIA devices, in place of the plain forms: each computes in one or two passes
//! over memory what candle's own operations take many for.
//!
//! A function here gives `None` where its kernel does not cover device, type or shape; the
//! caller then takes the plain form. Shapes and types that do not fit each other are errors
//! before anything is launched (see [`shapes`]).
#![allow(unsafe_code)]

mod blocks;
mod launch;

use candle_core::{DType, Device, Result, Tensor};

use self::launch::{Launch, Name, on_device, uninitialised};
use super::cached_attention::HistoryTable;
use super::shapes;
use crate::activation::Activation;
use crate::pooling::PoolingMode;

pub(crate) use self::blocks::Blocks;
#[cfg(test)]
pub(crate) use self::launch::reserved;
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
    shapes::norm(x, residual, parameters)?;
    let n = x.dim(candle_core::D::Minus1)?;
    let vectors = n.div_ceil(NORM_THREADS as usize * 4).next_power_of_two();
    if !on_device(x) || !n.is_multiple_of(4) || vectors > 8 {
        return Ok(None);
    }
    let (x, parameters) = (aligned(x, 4)?, aligned(parameters, 4)?);
    let residual = residual.map(|residual| aligned(residual, 4)).transpose()?;
    let out = match residual {
        Some(_) => x.clone(),
        // SAFETY: the kernel writes all rows.
        None => unsafe { uninitialised(x.shape(), x.dtype(), x.device())? },
    };
    let launch = Launch::new(&x, Name::Sized("norm", vectors))?
        .tensor(&x)?
        .optional(residual.as_ref())?
        .floats(&parameters)?
        .tensor(&out)?
        .int(n)?
        .float(epsilon as f32);
    // SAFETY: a block for each row of n numbers, which `vectors` is enough for; shapes are those
    // checked above, and all begin at a multiple of 4.
    unsafe { launch.run((x.elem_count() / n, 1), NORM_THREADS, 0)? };
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
    shapes::finish(x, bias, residual)?;
    let (n, count) = (bias.elem_count(), x.elem_count());
    if !on_device(x) || !x.is_contiguous() || i32::try_from(count).is_err() {
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
    let launch = Launch::new(x, Name::Sized("finish", vector))?
        .tensor(x)?
        .tensor(&bias)?
        .optional(residual.as_ref())?
        .int(count)?
        .int(n)?
        .int(activation as usize)?;
    // SAFETY: shapes are those checked above, and all begin at a multiple of `vector`, of which
    // n is one and so count; threads beyond it do nothing.
    unsafe { launch.run((blocks, 1), FINISH_THREADS, 0)? };
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
    shapes::layer(x, weight, bias, residual)?;
    let ((rows, inputs), outputs) = (x.dims2()?, weight.dim(0)?);
    // With many outputs more rows are worth the units that multiply whole matrices.
    let few = rows <= 16 || (rows <= 32 && outputs <= 8192);
    let short = matches!(x.dtype(), DType::F16 | DType::BF16);
    if !(on_device(x) && short && few && inputs.is_multiple_of(32) && weight.is_contiguous()) {
        return Ok(None);
    }
    if !starts_at_multiple(weight, 8) {
        return Ok(None);
    }
    let x = aligned(x, 8)?;
    let contiguous = |tensor: Option<&Tensor>| tensor.map(Tensor::contiguous).transpose();
    let (bias, residual) = (contiguous(bias)?, contiguous(residual)?);
    // SAFETY: the kernel writes all rows.
    let out = unsafe { uninitialised((rows, outputs), x.dtype(), x.device())? };
    let tiles = rows.div_ceil(8).next_power_of_two();
    let launch = Launch::new(&x, Name::Sized("narrow", tiles))?
        .tensor(&x)?
        .tensor(weight)?
        .optional(bias.as_ref())?
        .optional(residual.as_ref())?
        .tensor(&out)?
        .int(rows)?
        .int(inputs)?
        .int(outputs)?
        .int(activation as usize)?;
    let blocks = outputs.div_ceil(NARROW_OUTPUTS);
    // SAFETY: shapes are those checked above; x and weight begin at a multiple of 8, and have
    // rows of a multiple of 32; `tiles` of 8 are enough for the rows.
    unsafe { launch.run((blocks, 1), NARROW_THREADS, 0)? };
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
    /// Those of all sequences.
    tokens: usize,
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
        // Beyond that no kernel could count them.
        i32::try_from(start).map_err(candle_core::Error::wrap)?;
        let shape = (blocks.len() / 3, 3);
        let blocks = Tensor::from_vec(blocks, shape, device)?;
        Ok(Self {
            blocks,
            warps,
            tokens: start,
        })
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
    shapes::attention(qkv, bias, distances, tiles.tokens, heads)?;
    let (tokens, width) = qkv.dims2()?;
    let (hidden, head_size) = (width / 3, width / 3 / heads);
    let padded = [16, 32, 64, 96, 128]
        .into_iter()
        .find(|padded| head_size <= *padded);
    let (Some(padded), true) = (padded, covers_attention(qkv, head_size)) else {
        candle_core::bail!("no kernel has heads of {head_size} components of {qkv:?}")
    };
    let (qkv, bias) = (aligned(qkv, 8)?, aligned(bias, 8)?);
    // SAFETY: the blocks are of all queries of the sequences, which are all tokens.
    let out = unsafe { uninitialised((tokens, hidden), qkv.dtype(), qkv.device())? };
    let kernel = match tiles.warps {
        SHORT_WARPS => "attention_short",
        _ => "attention",
    };
    let launch = Launch::new(&qkv, Name::Sized(kernel, padded))?
        .tensor(&qkv)?
        .tensor(&bias)?
        .optional(distances.map(|(table, _)| table))?
        .table(&tiles.blocks)?
        .tensor(&out)?
        .int(hidden)?
        .int(head_size)?
        .int(distances.map_or(0, |(_, positions)| positions))?
        .float((head_size as f32).powf(-0.5));
    let blocks = (tiles.blocks.dim(0)?, heads);
    // SAFETY: shapes are those checked above, and the sequences end with the tokens; heads are
    // of a multiple of 8 numbers, from one of which on qkv and bias begin.
    unsafe { launch.run(blocks, 32 * tiles.warps as u32, 0)? };
    Ok(out)
}

/// Whether [`attend`] computes with numbers like those of `x`, in so many heads, with these
/// keys, values and rows of them.
pub(super) fn covers_single(
    x: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    table: &HistoryTable,
    heads: usize,
) -> bool {
    let &[_, hidden] = keys.dims() else {
        return false;
    };
    let head_size = hidden / heads;
    let lies_well = |tensor: &Tensor| tensor.is_contiguous() && starts_at_multiple(tensor, 4);
    on_device(x)
        && head_size.is_multiple_of(4)
        && head_size <= 256
        && shared_bytes(head_size, table.longest()) <= SHARED_BYTES
        && lies_well(keys)
        && lies_well(values)
}

/// What a block of [`attend`] needs: a number for each row, and the parts of the result.
fn shared_bytes(head_size: usize, rows: usize) -> usize {
    (rows.next_multiple_of(4) + GROUPS * head_size) * size_of::<f32>()
}

/// Attention of single queries to the rows of `keys` and `values`, (rows, hidden), that the
/// table names. `queries` are (queries, hidden) without their bias, (hidden), where they have
/// one; they may be a part of longer rows. With `append` both have keys and values of the new
/// rows behind them, 3 * hidden each: they are written to the last row of each query first,
/// which no other query may name.
pub(super) fn attend(
    queries: &Tensor,
    bias: Option<&Tensor>,
    keys: &Tensor,
    values: &Tensor,
    table: &HistoryTable,
    heads: usize,
    append: bool,
) -> Result<Tensor> {
    shapes::single(queries, bias, keys, values, heads, append)?;
    let ((count, width), (rows, hidden)) = (queries.dims2()?, keys.dims2()?);
    table.check(count, rows)?;
    if !covers_single(queries, keys, values, table, heads) {
        candle_core::bail!("no kernel attends with {queries:?} to {keys:?} and {values:?}")
    }
    let bias = bias.map(|bias| aligned(bias, 4)).transpose()?;
    let (queries, stride) = match queries.stride() {
        [stride, 1] if stride.is_multiple_of(4) && starts_at_multiple(queries, 4) => {
            (queries.clone(), *stride)
        }
        _ => (queries.force_contiguous()?, width),
    };
    let (rows, ends) = table.on_device(queries.device())?;
    let head_size = hidden / heads;
    let registers = head_size.div_ceil(64).next_power_of_two();
    // SAFETY: the kernel writes all heads of all queries.
    let out = unsafe { uninitialised((count, hidden), queries.dtype(), queries.device())? };
    let launch = Launch::new(&queries, Name::Sized("single", registers))?
        .strided(&queries)?
        .int(stride)?
        .optional(bias.as_ref())?
        .tensor(keys)?
        .tensor(values)?
        .table(rows)?
        .table(ends)?
        .tensor(&out)?
        .int(hidden)?
        .int(head_size)?
        .float((head_size as f32).powf(-0.5))
        .int(usize::from(append))?;
    let shared = shared_bytes(head_size, table.longest());
    // SAFETY: shapes are those checked above; each query has rows, all of them keys and values,
    // and `shared` is enough for the most; heads are of a multiple of 4 numbers, from one of
    // which on each row begins. Were a new row also that of another query, the numbers would be
    // wrong, but all within the tensors.
    unsafe { launch.run((count, heads), SINGLE_THREADS, shared)? };
    Ok(out)
}

/// One vector for each text, (texts, modes * width) in 32-bit floats, of `hidden`, (tokens,
/// width). A text has the tokens of its range, one at least.
pub(crate) fn pool(
    hidden: &Tensor,
    ranges: &[(usize, usize)],
    modes: &[PoolingMode],
) -> Result<Option<Tensor>> {
    shapes::pool(hidden, ranges)?;
    let (tokens, width) = hidden.dims2()?;
    if !on_device(hidden) || u32::try_from(tokens).is_err() {
        return Ok(None);
    }
    let hidden = hidden.contiguous()?;
    let bounds = ranges.iter().flat_map(|range| [range.0, range.1]);
    let bounds: Vec<u32> = bounds.map(|bound| bound as u32).collect();
    let bounds = Tensor::new(bounds, hidden.device())?;
    let out_width = modes.len() * width;
    // SAFETY: the modes together write all of each row.
    let out = unsafe { uninitialised((ranges.len(), out_width), DType::F32, hidden.device())? };
    let flat = out.flatten_all()?;
    for (index, mode) in modes.iter().enumerate() {
        let first = index * width;
        let launch = Launch::new(&hidden, Name::Plain("pool"))?
            .tensor(&hidden)?
            .table(&bounds)?
            .floats(&flat.narrow(0, first, flat.elem_count() - first)?)?
            .int(width)?
            .int(out_width)?
            .int(*mode as usize)?;
        // SAFETY: a block for each text; the ranges are within the tokens, as checked above, and
        // of the rows of the result each mode writes its part, from `first` on.
        unsafe { launch.run((ranges.len(), 1), FINISH_THREADS, 0)? };
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
    // SAFETY: the kernel writes a token for each row.
    let out = unsafe { uninitialised(rows, DType::U32, scores.device())? };
    let launch = Launch::new(&scores, Name::Plain("likeliest"))?
        .tensor(&scores)?
        .table(&out)?
        .int(tokens)?
        .unsigned(forbidden.unwrap_or(u32::MAX));
    // SAFETY: a block for each row of so many tokens.
    unsafe { launch.run((rows, 1), TOKEN_THREADS, 0)? };
    Ok(Some(out.to_vec1()?))
}

fn starts_at_multiple(tensor: &Tensor, of: usize) -> bool {
    tensor.layout().start_offset().is_multiple_of(of)
}

/// The same numbers contiguous, from a multiple of `of` on: a copy where they do not lie so.
fn aligned(tensor: &Tensor, of: usize) -> Result<Tensor> {
    let tensor = tensor.contiguous()?;
    match starts_at_multiple(&tensor, of) {
        true => Ok(tensor),
        false => tensor.force_contiguous(),
    }
}
