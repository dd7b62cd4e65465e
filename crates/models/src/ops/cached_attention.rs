//! Attention of single queries to keys and values that were computed before:
//! the earlier tokens of a text, or the patches of a picture.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp3, D, Device, Layout, Result, Shape, Tensor};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use super::attention::remember;
use super::{PARALLEL_ELEMENTS, cuda, floats, is_fused, math, put_rows, shapes};
use crate::linear::Linear;

/// Which rows of the keys and values each query attends to, in order.
///
/// Rows may be shared: the beams of a search point to the keys of their common
/// ancestors instead of copying them.
#[derive(Debug, Clone, Default)]
pub(crate) struct HistoryTable {
    /// The rows of all queries, behind each other.
    rows: Vec<u32>,
    /// Where the rows of each query end.
    ends: Vec<usize>,
    /// The most rows of a query.
    longest: usize,
    /// Rows of keys and values that there must be: one more than the greatest number of one.
    needed: usize,
    /// Whether a query has no rows.
    lacking: bool,
    /// Both on the device that computes with them.
    on_device: OnceLock<(Tensor, Tensor)>,
}

impl HistoryTable {
    /// Adds the next query with its rows.
    pub(crate) fn push(&mut self, rows: impl IntoIterator<Item = u32>) {
        let start = self.rows.len();
        self.rows.extend(rows);
        self.ends.push(self.rows.len());
        let own = &self.rows[start..];
        self.longest = self.longest.max(own.len());
        self.needed = own
            .iter()
            .fold(self.needed, |most, row| most.max(*row as usize + 1));
        self.lacking |= own.is_empty();
        self.on_device.take();
    }

    fn queries(&self) -> usize {
        self.ends.len()
    }

    /// The most rows of a query.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    pub(super) fn longest(&self) -> usize {
        self.longest
    }

    /// An error unless it is of so many queries, each with at least one of so many rows and with
    /// no other.
    pub(super) fn check(&self, queries: usize, rows: usize) -> Result<()> {
        if self.queries() != queries || self.needed > rows || self.lacking {
            candle_core::bail!("the table is not of {queries} queries to {rows} rows")
        }
        Ok(())
    }

    /// Whether the last rows of the queries are those from `first` on, one for each, and no
    /// query names that of another.
    fn appends(&self, first: usize) -> bool {
        (0..self.queries()).all(|query| {
            let new = first..first + self.queries();
            let last = self.of(query).split_last();
            last.is_some_and(|(last, before)| {
                let mut before = before.iter();
                *last as usize == first + query && !before.any(|row| new.contains(&(*row as usize)))
            })
        })
    }

    /// The rows of all queries and where those of each end, copied once for all layers.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    pub(super) fn on_device(&self, device: &Device) -> Result<&(Tensor, Tensor)> {
        remember(&self.on_device, || {
            // Kernels count them so.
            i32::try_from(self.rows.len()).map_err(candle_core::Error::wrap)?;
            let ends: Vec<u32> = self.ends.iter().map(|end| *end as u32).collect();
            let rows = Tensor::new(self.rows.as_slice(), device)?;
            Ok((rows, Tensor::new(ends, device)?))
        })
    }

    fn of(&self, query: usize) -> &[u32] {
        let start = query.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.rows[start..self.ends[query]]
    }
}

/// Multi-head attention of each query to its own rows.
///
/// `queries` is (queries, hidden), `keys` and `values` are (rows, hidden); all
/// with their bias. The result is (queries, hidden).
pub(crate) fn cached_attention(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    table: &HistoryTable,
    heads: usize,
) -> Result<Tensor> {
    shapes::single(queries, None, keys, values, heads, false)?;
    table.check(queries.dim(0)?, keys.dim(0)?)?;
    if cuda::covers_single(queries, keys, values, table, heads) {
        return cuda::attend(queries, None, keys, values, table, heads, false);
    }
    if !is_fused(queries) {
        return plain(queries, keys, values, table, heads);
    }
    let op = CachedAttention { table, heads };
    // The operation is used at once and never recorded, so it may borrow.
    let (q, k, v) = (queries.contiguous()?, keys, values);
    q.apply_op3_no_bwd(k, v, &op)
}

/// The same with queries that a layer makes of `x`, (queries, inputs).
pub(crate) fn projected_attention(
    x: &Tensor,
    layer: &Linear,
    keys: &Tensor,
    values: &Tensor,
    table: &HistoryTable,
    heads: usize,
) -> Result<Tensor> {
    if cuda::covers_single(x, keys, values, table, heads) {
        let queries = layer.product(x)?;
        return cuda::attend(
            &queries,
            Some(layer.bias()),
            keys,
            values,
            table,
            heads,
            false,
        );
    }
    cached_attention(&layer.forward(x)?, keys, values, table, heads)
}

/// Attention of new tokens to those before them and to themselves. A layer makes queries, keys
/// and values of them, (tokens, 3 * hidden), of `x`. The new keys and values are written to the
/// rows from `first` on, one for each token, which the table names as the last of its query.
/// No query may name the new row of another: on a device each is written and read at once, so
/// that it might be read before it is written.
pub(crate) fn appending_attention(
    x: &Tensor,
    layer: &Linear,
    keys: &Tensor,
    values: &Tensor,
    (first, table): (usize, &HistoryTable),
    heads: usize,
) -> Result<Tensor> {
    debug_assert!(
        table.appends(first),
        "a query has not its own new row alone"
    );
    let hidden = keys.dim(1)?;
    if cuda::covers_single(x, keys, values, table, heads) {
        let qkv = layer.product(x)?;
        return cuda::attend(&qkv, Some(layer.bias()), keys, values, table, heads, true);
    }
    let qkv = layer.forward(x)?;
    let part = |index: usize| qkv.narrow(1, index * hidden, hidden);
    put_rows(&part(1)?, keys, first)?;
    put_rows(&part(2)?, values, first)?;
    cached_attention(&part(0)?, keys, values, table, heads)
}

/// Gathers the rows of each run of queries with equally many, and multiplies.
fn plain(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    table: &HistoryTable,
    heads: usize,
) -> Result<Tensor> {
    let hidden = queries.dim(1)?;
    let head_size = hidden / heads;
    let lengths: Vec<usize> = (0..table.queries()).map(|q| table.of(q).len()).collect();
    let mut outputs = Vec::new();
    let (mut query, mut start) = (0, 0);
    for run in lengths.chunk_by(|a, b| a == b) {
        let (count, length) = (run.len(), run[0]);
        let rows = &table.rows[start..start + count * length];
        let rows = Tensor::new(rows, queries.device())?;
        let gather = |source: &Tensor| -> Result<Tensor> {
            source
                .index_select(&rows, 0)?
                .reshape((count, length, heads, head_size))?
                .transpose(1, 2)?
                .contiguous()
        };
        let q = queries
            .narrow(0, query, count)?
            .reshape((count, heads, 1, head_size))?;
        let scores = (q.matmul(&gather(keys)?.t()?)? * (head_size as f64).powf(-0.5))?;
        let weights = candle_nn::ops::softmax_last_dim(&scores)?;
        outputs.push(weights.matmul(&gather(values)?)?.reshape((count, hidden))?);
        query += count;
        start += count * length;
    }
    Tensor::cat(&outputs, D::Minus2)
}

struct CachedAttention<'a> {
    table: &'a HistoryTable,
    heads: usize,
}

impl CustomOp3 for CachedAttention<'_> {
    fn name(&self) -> &'static str {
        "cached-attention"
    }

    fn cpu_fwd(
        &self,
        queries: &CpuStorage,
        queries_layout: &Layout,
        keys: &CpuStorage,
        keys_layout: &Layout,
        values: &CpuStorage,
        values_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let queries = floats(queries, queries_layout)?;
        let keys = floats(keys, keys_layout)?;
        let values = floats(values, values_layout)?;
        let (count, hidden) = queries_layout.shape().dims2()?;
        let mut output = vec![0.0; count * hidden];
        let one = |scores: &mut Vec<f32>, (query, target): (usize, &mut [f32])| {
            let rows = self.table.of(query);
            let query = &queries[query * hidden..][..hidden];
            attend(query, keys, values, rows, self.heads, scores, target);
        };
        if self.table.rows.len() * hidden < PARALLEL_ELEMENTS {
            let mut scores = Vec::new();
            for task in output.chunks_exact_mut(hidden).enumerate() {
                one(&mut scores, task);
            }
        } else {
            output
                .par_chunks_exact_mut(hidden)
                .enumerate()
                .for_each_init(Vec::new, one);
        }
        Ok((CpuStorage::F32(output), Shape::from((count, hidden))))
    }
}

/// Attention of one query; goes through keys and values once, row by row.
fn attend(
    query: &[f32],
    keys: &[f32],
    values: &[f32],
    rows: &[u32],
    heads: usize,
    scores: &mut Vec<f32>,
    output: &mut [f32],
) {
    let hidden = query.len();
    let head_size = hidden / heads;
    let length = rows.len();
    let scale = 1.0 / (head_size as f32).sqrt();
    scores.clear();
    scores.resize(heads * length, 0.0);
    for (position, row) in rows.iter().enumerate() {
        let key = &keys[*row as usize * hidden..][..hidden];
        let parts = query
            .chunks_exact(head_size)
            .zip(key.chunks_exact(head_size));
        for (head, (query, key)) in parts.enumerate() {
            scores[head * length + position] = math::dot(query, key) * scale;
        }
    }
    for scores in scores.chunks_exact_mut(length) {
        let factor = math::exponentials(scores);
        for score in scores {
            *score *= factor;
        }
    }
    for (position, row) in rows.iter().enumerate() {
        let value = &values[*row as usize * hidden..][..hidden];
        let parts = output
            .chunks_exact_mut(head_size)
            .zip(value.chunks_exact(head_size));
        for (head, (output, value)) in parts.enumerate() {
            math::add_scaled(output, scores[head * length + position], value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{difference, values};
    use super::*;

    #[test]
    fn equals_the_plain_form() {
        let (heads, hidden) = (4, 48);
        let q = values(&[5, hidden], 1, 2.0);
        let k = values(&[40, hidden], 2, 2.0);
        let v = values(&[40, hidden], 3, 2.0);
        let mut table = HistoryTable::default();
        table.push([7]);
        table.push([39, 0, 7]);
        table.push([1, 1, 2]);
        table.push(0..40);
        table.push((0..40).rev());
        let fused = cached_attention(&q, &k, &v, &table, heads).unwrap();
        let expected = plain(&q, &k, &v, &table, heads).unwrap();
        assert!(difference(&fused, &expected) < 2e-6);
    }

    #[test]
    fn large_tables_are_computed_in_parallel_alike() {
        let (heads, hidden) = (12, 768);
        let q = values(&[3, hidden], 1, 2.0);
        let k = values(&[577, hidden], 2, 2.0);
        let v = values(&[577, hidden], 3, 2.0);
        let mut table = HistoryTable::default();
        (0..3).for_each(|_| table.push(0..577));
        let fused = cached_attention(&q, &k, &v, &table, heads).unwrap();
        let expected = plain(&q, &k, &v, &table, heads).unwrap();
        assert!(difference(&fused, &expected) < 2e-6);
    }

    #[test]
    fn a_table_of_other_queries_or_rows_is_an_error() {
        let x = values(&[2, 8], 1, 1.0);
        let attend = |queries: &[&[u32]]| {
            let mut table = HistoryTable::default();
            for rows in queries {
                table.push(rows.iter().copied());
            }
            cached_attention(&x, &x, &x, &table, 2)
        };
        assert!(attend(&[&[0], &[1, 0]]).is_ok());
        assert!(attend(&[&[0]]).is_err());
        assert!(attend(&[&[0], &[1], &[0]]).is_err());
        assert!(attend(&[&[0, 2], &[1]]).is_err());
        assert!(attend(&[&[], &[1]]).is_err());
    }

    #[test]
    fn new_rows_are_each_those_of_one_query() {
        let appends = |queries: &[&[u32]]| {
            let mut table = HistoryTable::default();
            for rows in queries {
                table.push(rows.iter().copied());
            }
            table.appends(6)
        };
        assert!(appends(&[&[0, 3, 6], &[7], &[5, 4, 3, 8]]));
        assert!(!appends(&[&[0, 6], &[6, 7]]));
        assert!(!appends(&[&[0, 7], &[0, 6]]));
        assert!(!appends(&[&[6], &[]]));
    }
}
