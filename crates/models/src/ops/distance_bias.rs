//! A bias of attention scores by how far the key lies from the query.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor};

/// A number for each head and each distance of a key from its query, which is
/// added to their scaled score.
#[derive(Debug, Clone)]
pub(crate) struct DistanceBias {
    /// (heads, 2 * positions - 1): distance d is at `positions - 1 + d`.
    table: Tensor,
    /// The same values for the CPU kernel, in reverse: distance d of head h is at
    /// `h * (2 * positions - 1) + positions - 1 - d`.
    reversed: Vec<f32>,
    positions: usize,
}

impl DistanceBias {
    /// `table` is (heads, 2 * positions - 1), for distances from
    /// `1 - positions` to `positions - 1`.
    pub(crate) fn new(table: &Tensor, positions: usize) -> Result<Self> {
        let (_, width) = table.dims2()?;
        if width != 2 * positions - 1 {
            candle_core::bail!("{positions} positions have not {width} distances")
        }
        let mut reversed: Vec<f32> = table.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?;
        for head in reversed.chunks_exact_mut(width) {
            head.reverse();
        }
        Ok(Self {
            reversed,
            table: table.contiguous()?,
            positions,
        })
    }

    /// The values by head and distance, (heads, 2 * positions - 1), and the positions.
    pub(super) fn table(&self) -> (&Tensor, usize) {
        (&self.table, self.positions)
    }

    /// What is added to the scores of the key at position `key` with the queries
    /// from position `first` on; as many as fit the table.
    pub(super) fn of_key(&self, head: usize, key: usize, first: usize) -> &[f32] {
        let width = 2 * self.positions - 1;
        let start = self.positions - 1 + first - key;
        &self.reversed[head * width..][start..width]
    }

    /// The bias of all scores of a sequence, (heads, length, length).
    fn matrix(&self, length: usize, device: &Device) -> Result<Tensor> {
        let last = self.positions - 1;
        let index: Vec<u32> = (0..length)
            .flat_map(|query| (0..length).map(move |key| (last + key - query) as u32))
            .collect();
        let index = Tensor::new(index, device)?;
        let heads = self.table.dim(0)?;
        self.table
            .index_select(&index, 1)?
            .reshape((heads, length, length))
    }

    /// The matrices of all these lengths, each once.
    pub(super) fn matrices(&self, lengths: &[usize]) -> Result<BTreeMap<usize, Tensor>> {
        let mut matrices = BTreeMap::new();
        for length in lengths {
            if !matrices.contains_key(length) {
                matrices.insert(*length, self.matrix(*length, self.table.device())?);
            }
        }
        Ok(matrices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_hold_the_bias_of_each_distance() {
        // Head h at distance d has the value 10 h + d.
        let values: Vec<f32> = (0..2)
            .flat_map(|head| (-3..=3).map(move |d| (10 * head + d) as f32))
            .collect();
        let table = Tensor::from_vec(values, (2, 7), &Device::Cpu).unwrap();
        let bias = DistanceBias::new(&table, 4).unwrap();
        assert_eq!(bias.of_key(0, 3, 0), [3.0, 2.0, 1.0, 0.0, -1.0, -2.0, -3.0]);
        assert_eq!(bias.of_key(1, 0, 2), [8.0, 7.0]);
        let matrices = bias.matrices(&[3, 1, 3]).unwrap();
        assert_eq!(matrices.len(), 2);
        let matrix = matrices[&3].get(1).unwrap().to_vec2::<f32>().unwrap();
        for (query, row) in matrix.iter().enumerate() {
            for (key, value) in row.iter().enumerate() {
                assert_eq!(*value, bias.of_key(1, key, query)[0]);
            }
        }
        assert!(DistanceBias::new(&table, 5).is_err());
    }
}
