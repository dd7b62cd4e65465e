//! Self-attention over sequences that lie behind each other without padding.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp2, D, Device, Layout, Result, Shape, Tensor};
use pulp::{Arch, Simd, WithSimd};
use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};

use super::kernel::{Target, WIDTH, multiply, pack_tiles, tile_rows};
use super::{DistanceBias, PARALLEL_ELEMENTS, cuda, floats, math, shapes};

/// Sequences longer than this are shared out among threads head by head.
const LONG: usize = 128;

/// The sequences of a packed batch, and what all layers share about them.
#[derive(Debug)]
pub(crate) struct Packing<'a> {
    lengths: &'a [usize],
    heads: usize,
    bias: Option<&'a DistanceBias>,
    /// The matrices of `bias` by length, where the plain form needs them.
    matrices: OnceLock<BTreeMap<usize, Tensor>>,
    /// What each block of a device's kernel computes, where that needs it.
    tiles: OnceLock<cuda::Tiles>,
    fused: bool,
    arch: Arch,
}

impl<'a> Packing<'a> {
    /// `lengths` are the tokens of each sequence, in order; `bias` is added to
    /// their scores and covers the longest; `fused` is whether the kernel computes
    /// (see [`super::is_fused`]).
    pub(crate) fn new(
        lengths: &'a [usize],
        heads: usize,
        bias: Option<&'a DistanceBias>,
        fused: bool,
    ) -> Result<Self> {
        Ok(Self {
            lengths,
            heads,
            bias,
            matrices: OnceLock::new(),
            tiles: OnceLock::new(),
            fused,
            arch: Arch::new(),
        })
    }

    fn matrices(&self) -> Result<&BTreeMap<usize, Tensor>> {
        remember(&self.matrices, || match self.bias {
            Some(bias) => bias.matrices(self.lengths),
            None => Ok(BTreeMap::new()),
        })
    }

    fn tiles(&self, device: &Device) -> Result<&cuda::Tiles> {
        remember(&self.tiles, || cuda::Tiles::new(self.lengths, device))
    }
}

/// What the place holds, which is computed first where it is empty.
pub(super) fn remember<T>(place: &OnceLock<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    if let Some(made) = place.get() {
        return Ok(made);
    }
    let made = make()?;
    Ok(place.get_or_init(|| made))
}

/// Multi-head attention of each sequence to itself.
///
/// `qkv` is (tokens, 3 * hidden): queries, keys and values beside each other,
/// without their bias; `bias` is (3 * hidden). The lengths of `packing` sum up
/// to the rows of `qkv`. The result is (tokens, hidden).
pub(crate) fn packed_attention(
    qkv: &Tensor,
    bias: &Tensor,
    packing: &Packing<'_>,
) -> Result<Tensor> {
    let head_size = bias.elem_count() / 3 / packing.heads;
    let distances = packing.bias.map(DistanceBias::table);
    if cuda::covers_attention(qkv, head_size) {
        let tiles = packing.tiles(qkv.device())?;
        return cuda::attention(qkv, bias, distances, tiles, packing.heads);
    }
    let tokens = packing.lengths.iter().sum();
    shapes::attention(qkv, bias, distances, tokens, packing.heads)?;
    if !packing.fused {
        return plain(qkv, bias, packing);
    }
    qkv.contiguous()?
        .apply_op2_no_bwd(bias, &PackedAttention { packing })
}

/// One batched product for each run of sequences of one length.
fn plain(qkv: &Tensor, bias: &Tensor, packing: &Packing<'_>) -> Result<Tensor> {
    let qkv = qkv.broadcast_add(bias)?;
    let heads = packing.heads;
    let hidden = qkv.dim(1)? / 3;
    let head_size = hidden / heads;
    let matrices = packing.matrices()?;
    let mut outputs = Vec::new();
    let mut start = 0;
    for run in packing.lengths.chunk_by(|a, b| a == b) {
        let (count, length) = (run.len(), run[0]);
        let qkv = qkv
            .narrow(0, start, count * length)?
            .reshape((count, length, 3, heads, head_size))?
            .permute((2, 0, 3, 1, 4))?
            .contiguous()?;
        let (q, k, v) = (qkv.get(0)?, qkv.get(1)?, qkv.get(2)?);
        let mut scores = (q.matmul(&k.t()?)? * (head_size as f64).powf(-0.5))?;
        if let Some(bias) = matrices.get(&length) {
            scores = scores.broadcast_add(bias)?;
        }
        let weights = candle_nn::ops::softmax_last_dim(&scores)?;
        let output = weights.matmul(&v)?.transpose(1, 2)?;
        outputs.push(output.reshape((count * length, hidden))?);
        start += count * length;
    }
    match outputs.len() {
        1 => Ok(outputs.remove(0)),
        _ => Tensor::cat(&outputs, D::Minus2),
    }
}

/// Borrows, as it is used at once and never recorded.
struct PackedAttention<'a> {
    packing: &'a Packing<'a>,
}

/// Some heads of one sequence.
struct Task<'a> {
    /// (length, 3 * hidden), without the bias.
    qkv: &'a [f32],
    heads: Range<usize>,
    /// (heads of the task, length, head size).
    output: &'a mut [f32],
}

impl CustomOp2 for PackedAttention<'_> {
    fn name(&self) -> &'static str {
        "packed-attention"
    }

    fn cpu_fwd(
        &self,
        qkv: &CpuStorage,
        qkv_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let qkv = floats(qkv, qkv_layout)?;
        let bias = floats(bias, bias_layout)?;
        let hidden = bias.len() / 3;
        let tokens = qkv.len() / bias.len();
        let Packing { lengths, heads, .. } = *self.packing;
        // Of each sequence (heads, length, head size): so tasks write apart.
        let mut by_head = vec![0.0; tokens * hidden];
        let tasks = self.tasks(qkv, &mut by_head, hidden);
        let attend = |scratch: &mut Scratch, task: Task<'_>| {
            self.packing.arch.dispatch(Attention {
                task,
                bias,
                distances: self.packing.bias,
                heads,
                scratch,
            });
        };
        if qkv.len() < PARALLEL_ELEMENTS {
            let mut scratch = Scratch::default();
            tasks
                .into_iter()
                .for_each(|task| attend(&mut scratch, task));
        } else {
            tasks
                .into_par_iter()
                .with_max_len(1)
                .for_each_init(Scratch::default, attend);
        }
        let output = interleave_heads(&by_head, lengths, heads, hidden);
        Ok((CpuStorage::F32(output), Shape::from((tokens, hidden))))
    }
}

impl PackedAttention<'_> {
    /// All heads of a short sequence make one task, each head of a long one.
    fn tasks<'a>(
        &self,
        mut qkv: &'a [f32],
        mut output: &'a mut [f32],
        hidden: usize,
    ) -> Vec<Task<'a>> {
        let heads = self.packing.heads;
        let mut tasks = Vec::with_capacity(self.packing.lengths.len());
        for length in self.packing.lengths {
            let (input, after_in) = qkv.split_at(length * 3 * hidden);
            let (target, after_out) = output.split_at_mut(length * hidden);
            (qkv, output) = (after_in, after_out);
            let at_once = if *length > LONG { 1 } else { heads };
            let parts = target.chunks_mut((length * hidden / heads * at_once).max(1));
            for (part, output) in parts.enumerate() {
                tasks.push(Task {
                    qkv: input,
                    heads: part * at_once..(part + 1) * at_once,
                    output,
                });
            }
        }
        tasks
    }
}

/// From (heads, length, head size) of each sequence to (tokens, hidden).
fn interleave_heads(by_head: &[f32], lengths: &[usize], heads: usize, hidden: usize) -> Vec<f32> {
    let head_size = hidden / heads;
    let mut output = Vec::with_capacity(by_head.len());
    let mut rest = by_head;
    for length in lengths {
        let (sequence, after) = rest.split_at(length * hidden);
        rest = after;
        for token in 0..*length {
            for head in 0..heads {
                let start = (head * length + token) * head_size;
                output.extend_from_slice(&sequence[start..start + head_size]);
            }
        }
    }
    output
}

/// Working memory of one thread.
#[derive(Default)]
struct Scratch {
    /// Rows of one matrix of the head, with their bias.
    rows: Vec<f32>,
    /// Keys (length, head size) in tiles.
    keys: Vec<f32>,
    /// Transposed values (head size, length) in tiles.
    values: Vec<f32>,
    /// A panel of scaled queries, (head size, WIDTH).
    queries: Vec<f32>,
    /// A panel of scores, (length, WIDTH).
    scores: Vec<f32>,
    /// (head size, WIDTH).
    output: Vec<f32>,
}

/// The attention of a task, for [`WIDTH`] queries at a time: one lies beside the
/// other in a panel, so that scores, softmax and output need no transposition.
struct Attention<'a> {
    task: Task<'a>,
    bias: &'a [f32],
    distances: Option<&'a DistanceBias>,
    heads: usize,
    scratch: &'a mut Scratch,
}

impl WithSimd for Attention<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self {
            task,
            bias,
            distances,
            heads,
            scratch,
        } = self;
        let head_size = bias.len() / 3 / heads;
        let length = task.qkv.len() / bias.len();
        let outputs = task.output.chunks_exact_mut(length * head_size);
        for (head, output) in task.heads.zip(outputs) {
            let source = Head {
                qkv: task.qkv,
                bias,
                first: head * head_size,
                size: head_size,
            };
            scratch.load_keys_and_values(&source, tile_rows(simd));
            for first in (0..length).step_by(WIDTH) {
                let count = WIDTH.min(length - first);
                scratch.load_queries(&source, first, count);
                let target = Target {
                    values: &mut scratch.scores,
                    stride: WIDTH,
                    add: false,
                };
                multiply(simd, &scratch.keys, length, &scratch.queries, target);
                if let Some(distances) = distances {
                    for (key, scores) in scratch.scores.chunks_exact_mut(WIDTH).enumerate() {
                        let biases = distances.of_key(head, key, first);
                        for (score, bias) in scores.iter_mut().zip(biases) {
                            *score += bias;
                        }
                    }
                }
                let factors = math::exponential_columns::<WIDTH>(&mut scratch.scores);
                let target = Target {
                    values: &mut scratch.output,
                    stride: WIDTH,
                    add: false,
                };
                multiply(simd, &scratch.values, head_size, &scratch.scores, target);
                let rows = output[first * head_size..].chunks_exact_mut(head_size);
                for (query, row) in rows.take(count).enumerate() {
                    let sums = scratch.output[query..].iter().step_by(WIDTH);
                    for (target, sum) in row.iter_mut().zip(sums) {
                        *target = sum * factors[query];
                    }
                }
            }
        }
    }
}

/// Where one head of a sequence is.
struct Head<'a> {
    /// (length, 3 * hidden).
    qkv: &'a [f32],
    bias: &'a [f32],
    /// Its first component among those of all heads.
    first: usize,
    size: usize,
}

/// The matrices of a head, in their order.
#[derive(Clone, Copy)]
enum Part {
    Query,
    Key,
    Value,
}

impl Head<'_> {
    fn length(&self) -> usize {
        self.qkv.len() / self.bias.len()
    }

    /// The vectors of all tokens, and the bias to add to each.
    #[inline(always)]
    fn part(&self, part: Part) -> (impl Iterator<Item = &[f32]>, &[f32]) {
        let start = part as usize * self.bias.len() / 3 + self.first;
        let range = start..start + self.size;
        let bias = &self.bias[range.clone()];
        let rows = self.qkv.chunks_exact(self.bias.len());
        (rows.map(move |row| &row[range.clone()]), bias)
    }
}

impl Scratch {
    #[inline(always)]
    fn load_keys_and_values(&mut self, head: &Head<'_>, tile_rows: usize) {
        let length = head.length();
        let (keys, bias) = head.part(Part::Key);
        self.rows.clear();
        for key in keys {
            self.rows
                .extend(key.iter().zip(bias).map(|(k, bias)| k + bias));
        }
        pack_tiles(
            &self.rows,
            head.size,
            length,
            head.size,
            tile_rows,
            &mut self.keys,
        );
        let (values, bias) = head.part(Part::Value);
        self.rows.clear();
        self.rows.resize(head.size * length, 0.0);
        for (token, value) in values.enumerate() {
            let column = self.rows[token..].iter_mut().step_by(length);
            for ((target, v), bias) in column.zip(value).zip(bias) {
                *target = v + bias;
            }
        }
        pack_tiles(
            &self.rows,
            length,
            head.size,
            length,
            tile_rows,
            &mut self.values,
        );
        self.scores.resize(length * WIDTH, 0.0);
        self.output.resize(head.size * WIDTH, 0.0);
    }

    #[inline(always)]
    fn load_queries(&mut self, head: &Head<'_>, first: usize, count: usize) {
        let scale = 1.0 / (head.size as f32).sqrt();
        self.queries.clear();
        self.queries.resize(head.size * WIDTH, 0.0);
        let (queries, bias) = head.part(Part::Query);
        for (place, query) in queries.skip(first).take(count).enumerate() {
            let column = self.queries[place..].iter_mut().step_by(WIDTH);
            for ((target, q), bias) in column.zip(query).zip(bias) {
                *target = (q + bias) * scale;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{all_archs, difference, values};
    use super::*;

    fn packing<'a>(
        lengths: &'a [usize],
        heads: usize,
        bias: Option<&'a DistanceBias>,
    ) -> Packing<'a> {
        Packing::new(lengths, heads, bias, true).unwrap()
    }

    fn compare(lengths: &[usize], heads: usize, head_size: usize) {
        let hidden = heads * head_size;
        let longest = *lengths.iter().max().unwrap();
        let qkv = values(&[lengths.iter().sum(), 3 * hidden], 1, 2.0);
        let bias = values(&[3 * hidden], 2, 1.0);
        let positions = longest + 3;
        let table = values(&[heads, 2 * positions - 1], 3, 3.0);
        let distances = DistanceBias::new(&table, positions).unwrap();
        let mut results = Vec::new();
        for distances in [None, Some(&distances)] {
            let mut packing = packing(lengths, heads, distances);
            assert!(packing.fused);
            let fused = all_archs().into_iter().map(|arch| {
                packing.arch = arch;
                packed_attention(&qkv, &bias, &packing).unwrap()
            });
            let fused: Vec<Tensor> = fused.collect();
            packing.fused = false;
            let expected = packed_attention(&qkv, &bias, &packing).unwrap();
            for fused in fused {
                let error = difference(&fused, &expected);
                assert!(error < 6e-6, "{lengths:?} x {heads} x {head_size}: {error}");
            }
            results.push(expected);
        }
        assert!(longest == 1 || difference(&results[0], &results[1]) > 0.1);
    }

    #[test]
    fn equals_the_plain_form() {
        compare(&[1], 1, 1);
        compare(&[2, 1, 5, 5, 16, 17], 2, 8);
        compare(&[3, 64, 160, 9], 12, 32);
        compare(&[37], 12, 64);
        compare(&[20; 40], 3, 20);
        compare(&[LONG, LONG + 1, 33], 4, 16);
        compare(&[577, 577], 2, 64);
    }

    #[test]
    fn sequences_do_not_see_each_other() {
        let (heads, hidden) = (2, 32);
        let qkv = values(&[9, 3 * hidden], 1, 2.0);
        let bias = values(&[3 * hidden], 2, 1.0);
        let both = packed_attention(&qkv, &bias, &packing(&[4, 5], heads, None)).unwrap();
        let first = qkv.narrow(0, 0, 4).unwrap().contiguous().unwrap();
        let alone = packed_attention(&first, &bias, &packing(&[4], heads, None)).unwrap();
        assert_eq!(difference(&both.narrow(0, 0, 4).unwrap(), &alone), 0.0);
    }

    #[test]
    fn lengths_that_do_not_cover_the_tokens_are_an_error() {
        let qkv = values(&[9, 24], 1, 2.0);
        let bias = values(&[24], 2, 1.0);
        for fused in [true, false] {
            for (lengths, fits) in [([4, 4], false), ([4, 5], true), ([5, 5], false)] {
                let packing = Packing::new(&lengths, 2, None, fused).unwrap();
                let attended = packed_attention(&qkv, &bias, &packing);
                assert_eq!(attended.is_ok(), fits, "{lengths:?}");
            }
        }
    }
}
