//! Self-attention over sequences that lie behind each other without padding.

use std::collections::BTreeMap;

use candle_core::{CpuStorage, CustomOp2, D, Device, Layout, Result, Shape, Tensor};
use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::{DistanceBias, PARALLEL_ELEMENTS, floats, math};

/// Sequences longer than this are left to the matrix multiplication of candle,
/// which then outweighs the copies around it.
const LONGEST_FUSED: usize = 160;
/// Queries and columns of one tile: its sums stay in registers.
const TILE_ROWS: usize = 4;
const TILE_COLUMNS: usize = 16;

/// The sequences of a packed batch, and what all layers share about them.
#[derive(Debug)]
pub(crate) struct Packing<'a> {
    lengths: &'a [usize],
    heads: usize,
    bias: Option<&'a DistanceBias>,
    /// The matrices of `bias` by length, where the plain form needs them.
    matrices: BTreeMap<usize, Tensor>,
    fused: bool,
}

impl<'a> Packing<'a> {
    /// `lengths` are the tokens of each sequence, in order; `bias` is added to
    /// their scores and covers the longest.
    pub(crate) fn new(
        lengths: &'a [usize],
        heads: usize,
        bias: Option<&'a DistanceBias>,
        device: &Device,
    ) -> Result<Self> {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let mut packing = Self {
            lengths,
            heads,
            bias,
            matrices: BTreeMap::new(),
            fused: device.is_cpu() && longest <= LONGEST_FUSED,
        };
        if !packing.fused {
            packing.make_plain()?;
        }
        Ok(packing)
    }

    fn make_plain(&mut self) -> Result<()> {
        self.fused = false;
        if let Some(bias) = self.bias {
            self.matrices = bias.matrices(self.lengths)?;
        }
        Ok(())
    }
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
        if let Some(bias) = packing.matrices.get(&length) {
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
        let Packing {
            lengths,
            heads,
            bias: distances,
            ..
        } = *self.packing;
        if lengths.iter().sum::<usize>() != tokens {
            candle_core::bail!("the sequences do not cover {tokens} tokens")
        }
        let mut output = vec![0.0; tokens * hidden];
        let mut sequences = Vec::with_capacity(lengths.len());
        let (mut rest_in, mut rest_out) = (qkv, output.as_mut_slice());
        for length in lengths {
            let (input, after_in) = rest_in.split_at(length * bias.len());
            let (target, after_out) = rest_out.split_at_mut(length * hidden);
            sequences.push((input, target));
            (rest_in, rest_out) = (after_in, after_out);
        }
        let attend = |scratch: &mut Scratch, (input, target): (&[f32], &mut [f32])| {
            for head in 0..heads {
                scratch.load(input, bias, head, heads);
                scratch.attend(target, head, heads, distances);
            }
        };
        if qkv.len() < PARALLEL_ELEMENTS {
            let mut scratch = Scratch::default();
            for sequence in sequences {
                attend(&mut scratch, sequence);
            }
        } else {
            sequences
                .into_par_iter()
                .for_each_init(Scratch::default, attend);
        }
        Ok((CpuStorage::F32(output), Shape::from((tokens, hidden))))
    }
}

/// Working memory of one thread, padded to whole tiles.
#[derive(Default)]
struct Scratch {
    /// Tokens of the sequence, and components of a token's vector.
    length: usize,
    hidden: usize,
    /// (rows, head size): scaled queries of one head.
    queries: Vec<f32>,
    /// (head size, columns): keys, transposed.
    keys: Vec<f32>,
    /// (length, padded head size).
    values: Vec<f32>,
    /// (tile rows, columns).
    scores: Vec<f32>,
}

impl Scratch {
    /// Attention of the head that was loaded, into its columns of `output`.
    fn attend(
        &mut self,
        output: &mut [f32],
        head: usize,
        heads: usize,
        distances: Option<&DistanceBias>,
    ) {
        let Self { length, hidden, .. } = *self;
        let head_size = hidden / heads;
        let columns = length.next_multiple_of(TILE_COLUMNS);
        let padded_size = head_size.next_multiple_of(TILE_COLUMNS);
        self.scores.resize(TILE_ROWS * columns, 0.0);
        for first in (0..length).step_by(TILE_ROWS) {
            let queries = &self.queries[first * head_size..][..TILE_ROWS * head_size];
            for column in (0..columns).step_by(TILE_COLUMNS) {
                let tile = tile(queries, head_size, &self.keys[column..], columns, head_size);
                for (scores, sums) in self.scores.chunks_exact_mut(columns).zip(&tile) {
                    scores[column..column + TILE_COLUMNS].copy_from_slice(sums);
                }
            }
            if let Some(distances) = distances {
                let rows = self.scores.chunks_exact_mut(columns);
                for (position, scores) in (first..length).zip(rows) {
                    let biases = distances.row(head, position, length);
                    for (score, bias) in scores.iter_mut().zip(biases) {
                        *score += bias;
                    }
                }
            }
            let mut factors = [0.0; TILE_ROWS];
            for (scores, factor) in self.scores.chunks_exact_mut(columns).zip(&mut factors) {
                *factor = math::exponentials(&mut scores[..length]);
            }
            for column in (0..padded_size).step_by(TILE_COLUMNS) {
                let values = &self.values[column..];
                let tile = tile(&self.scores, columns, values, padded_size, length);
                let width = TILE_COLUMNS.min(head_size - column);
                for (row, (sums, factor)) in (first..length).zip(tile.iter().zip(&factors)) {
                    let start = row * hidden + head * head_size + column;
                    for (target, sum) in output[start..start + width].iter_mut().zip(sums) {
                        *target = sum * factor;
                    }
                }
            }
        }
    }

    /// Brings queries, keys and values of one head into the order of the tiles.
    fn load(&mut self, qkv: &[f32], bias: &[f32], head: usize, heads: usize) {
        let width = bias.len();
        let hidden = width / 3;
        let head_size = hidden / heads;
        let length = qkv.len() / width;
        (self.length, self.hidden) = (length, hidden);
        let columns = length.next_multiple_of(TILE_COLUMNS);
        let padded_size = head_size.next_multiple_of(TILE_COLUMNS);
        let rows = length.next_multiple_of(TILE_ROWS);
        self.queries.clear();
        self.queries.resize(rows * head_size, 0.0);
        self.keys.clear();
        self.keys.resize(head_size * columns, 0.0);
        self.values.clear();
        self.values.resize(length * padded_size, 0.0);
        let scale = 1.0 / (head_size as f32).sqrt();
        let offsets = [0, hidden, 2 * hidden].map(|part| part + head * head_size);
        let biases = offsets.map(|offset| &bias[offset..offset + head_size]);
        for (token, row) in qkv.chunks_exact(width).enumerate() {
            let [q, k, v] = offsets.map(|offset| &row[offset..offset + head_size]);
            let queries = &mut self.queries[token * head_size..][..head_size];
            for ((target, q), bias) in queries.iter_mut().zip(q).zip(biases[0]) {
                *target = (q + bias) * scale;
            }
            for (index, (k, bias)) in k.iter().zip(biases[1]).enumerate() {
                self.keys[index * columns + token] = k + bias;
            }
            let values = &mut self.values[token * padded_size..][..head_size];
            for ((target, v), bias) in values.iter_mut().zip(v).zip(biases[2]) {
                *target = v + bias;
            }
        }
    }
}

/// A product of (TILE_ROWS, depth) by (depth, TILE_COLUMNS): `a` has rows of
/// `a_stride`, `b` rows of `b_stride`, from whose beginning the columns are taken.
#[inline(always)]
fn tile(
    a: &[f32],
    a_stride: usize,
    b: &[f32],
    b_stride: usize,
    depth: usize,
) -> [[f32; TILE_COLUMNS]; TILE_ROWS] {
    let mut sums = [[0.0_f32; TILE_COLUMNS]; TILE_ROWS];
    let rows: [&[f32]; TILE_ROWS] = std::array::from_fn(|row| &a[row * a_stride..][..depth]);
    for index in 0..depth {
        let b: &[f32; TILE_COLUMNS] = b[index * b_stride..]
            .first_chunk()
            .expect("rows are padded to whole tiles");
        for (sums, row) in sums.iter_mut().zip(&rows) {
            let factor = row[index];
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = factor.mul_add(*b, *sum);
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::super::testing::{difference, values};
    use super::*;

    fn packing<'a>(
        lengths: &'a [usize],
        heads: usize,
        bias: Option<&'a DistanceBias>,
    ) -> Packing<'a> {
        Packing::new(lengths, heads, bias, &Device::Cpu).unwrap()
    }

    fn compare(lengths: &[usize], heads: usize, head_size: usize) {
        let hidden = heads * head_size;
        let qkv = values(&[lengths.iter().sum(), 3 * hidden], 1, 2.0);
        let bias = values(&[3 * hidden], 2, 1.0);
        let table = values(&[heads, 2 * LONGEST_FUSED - 1], 3, 3.0);
        let distances = DistanceBias::new(&table, LONGEST_FUSED).unwrap();
        let mut results = Vec::new();
        for distances in [None, Some(&distances)] {
            let mut packing = packing(lengths, heads, distances);
            assert!(packing.fused);
            let fused = packed_attention(&qkv, &bias, &packing).unwrap();
            packing.make_plain().unwrap();
            let expected = packed_attention(&qkv, &bias, &packing).unwrap();
            let error = difference(&fused, &expected);
            assert!(error < 3e-6, "{lengths:?} x {heads} x {head_size}: {error}");
            results.push(fused);
        }
        let longest = lengths.iter().max().unwrap();
        assert!(*longest == 1 || difference(&results[0], &results[1]) > 0.1);
    }

    #[test]
    fn equals_the_plain_form() {
        compare(&[1], 1, 1);
        compare(&[2, 1, 5, 5, 16, 17], 2, 8);
        compare(&[3, 64, 160, 9], 12, 32);
        compare(&[37], 12, 64);
        compare(&[20; 40], 3, 20);
    }

    #[test]
    fn longer_sequences_are_computed_plainly() {
        assert!(!packing(&[3, LONGEST_FUSED + 1], 2, None).fused);
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
        assert!(packed_attention(&qkv, &bias, &packing(&[4, 4], 2, None)).is_err());
    }
}
