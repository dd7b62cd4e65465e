//! Keys and values that attention computed before, and that belong to a request.

use candle_core::{Result, Tensor};

use crate::device::Placement;
use crate::ops::put_rows;

/// Keys and values of a picture or a text for one layer, each (rows, hidden).
#[derive(Debug, Clone)]
pub(crate) struct KeysAndValues {
    pub(crate) keys: Tensor,
    pub(crate) values: Tensor,
}

impl KeysAndValues {
    /// Memory for `rows` tokens, in each of `layers`.
    pub(crate) fn reserve(
        layers: usize,
        rows: usize,
        hidden: usize,
        place: &Placement,
    ) -> Result<Vec<Self>> {
        let zeros = || Tensor::zeros((rows, hidden), place.dtype, &place.device);
        let layer = |_| {
            Ok(Self {
                keys: zeros()?,
                values: zeros()?,
            })
        };
        (0..layers).map(layer).collect()
    }

    /// Writes the keys and values of tokens from row `first` on.
    pub(crate) fn write(&self, keys: &Tensor, values: &Tensor, first: usize) -> Result<()> {
        put_rows(keys, &self.keys, first)?;
        put_rows(values, &self.values, first)
    }
}

/// A cache of rows in which the sequences of a search have their tokens, each
/// sequence as a list of rows. Rows that several sequences have in common are there
/// once; those of sequences that a search gave up are free again when memory runs out.
///
/// A search with many beams keeps few of them: after some tokens all that go on have
/// the same beginning. So memory is not taken for all tokens that there may be, but
/// for twice those that are in use.
#[derive(Debug)]
pub(crate) struct TokenCache {
    layers: Vec<KeysAndValues>,
    /// Rows of each layer.
    rows: usize,
    /// The first row that was never written, or not since rows were moved.
    free: usize,
    /// More rows than this are never needed.
    most: usize,
}

impl TokenCache {
    /// `layers` of (rows, hidden) each, which may grow to `most` rows.
    pub(crate) fn new(layers: Vec<KeysAndValues>, rows: usize, most: usize) -> Self {
        Self {
            layers,
            rows,
            free: 0,
            most,
        }
    }

    pub(crate) fn layers(&self) -> &[KeysAndValues] {
        &self.layers
    }

    /// Takes `count` rows for tokens, and returns the first; the others follow. Where
    /// there are not so many left, the rows of `sequences` are moved together, in a
    /// larger memory if they fill more than half of this one.
    pub(crate) fn take(&mut self, count: usize, sequences: &mut [Vec<u32>]) -> Result<usize> {
        if self.free + count > self.rows {
            self.move_together(count, sequences)?;
        }
        let first = self.free;
        self.free += count;
        if self.free > self.rows {
            candle_core::bail!(
                "{} rows are too many for a cache of {}",
                self.free,
                self.rows
            )
        }
        Ok(first)
    }

    fn move_together(&mut self, count: usize, sequences: &mut [Vec<u32>]) -> Result<()> {
        let mut used: Vec<u32> = sequences.iter().flatten().copied().collect();
        used.sort_unstable();
        used.dedup();
        let mut places = vec![0; self.rows];
        for (place, row) in used.iter().enumerate() {
            places[*row as usize] = place as u32;
        }
        let rows = (2 * used.len() + count).min(self.most).max(self.rows);
        for layer in &mut self.layers {
            // One after the other: only one of them is there twice.
            for tensor in [&mut layer.keys, &mut layer.values] {
                let moved = Tensor::zeros((rows, tensor.dim(1)?), tensor.dtype(), tensor.device())?;
                let used = Tensor::new(used.as_slice(), tensor.device())?;
                moved.slice_set(&tensor.index_select(&used, 0)?, 0, 0)?;
                *tensor = moved;
            }
        }
        for row in sequences.iter_mut().flatten() {
            *row = places[*row as usize];
        }
        self.rows = rows;
        self.free = used.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Writes the number of each token into both tables of all layers.
    fn write(cache: &TokenCache, first: usize, tokens: &[f32]) {
        let row = Tensor::from_slice(tokens, (tokens.len(), 1), &Device::Cpu).unwrap();
        for (index, layer) in cache.layers().iter().enumerate() {
            let keys = (&row + index as f64).unwrap();
            layer.write(&keys, &(keys.neg().unwrap()), first).unwrap();
        }
    }

    fn read(cache: &TokenCache, sequence: &[u32]) -> Vec<f32> {
        let rows = Tensor::new(sequence, &Device::Cpu).unwrap();
        let get = |x: &Tensor| -> Vec<f32> {
            let rows = x.index_select(&rows, 0).unwrap();
            rows.flatten_all().unwrap().to_vec1().unwrap()
        };
        let keys = get(&cache.layers()[1].keys);
        let values = get(&cache.layers()[1].values);
        assert!(keys.iter().zip(values).all(|(key, value)| *key == -value));
        assert_eq!(keys.len(), sequence.len());
        keys.iter().map(|key| key - 1.0).collect()
    }

    #[test]
    fn sequences_keep_their_tokens_when_rows_are_moved() {
        let layers = KeysAndValues::reserve(2, 10, 1, &Placement::default()).unwrap();
        let mut cache = TokenCache::new(layers, 10, 400);
        let mut expected: Vec<Vec<f32>> = vec![Vec::new(); 4];
        let mut sequences: Vec<Vec<u32>> = vec![Vec::new(); 4];
        let mut largest = 0;
        for step in 0..100 {
            // All sequences go on from the same two, whose numbers change.
            let parents: Vec<usize> = (0..4).map(|row| (row / 2 + step) % 4).collect();
            expected = parents.iter().map(|p| expected[*p].clone()).collect();
            sequences = parents.iter().map(|p| sequences[*p].clone()).collect();
            let first = cache.take(4, &mut sequences).unwrap();
            let tokens: Vec<f32> = (0..4).map(|row| (step * 4 + row) as f32).collect();
            write(&cache, first, &tokens);
            for (row, sequence) in sequences.iter_mut().enumerate() {
                sequence.push((first + row) as u32);
                expected[row].push(tokens[row]);
                assert_eq!(read(&cache, sequence), expected[row]);
            }
            largest = largest.max(cache.rows);
        }
        // The four have all but their last tokens in common.
        assert!(largest < 260, "{largest}");
        assert!(largest > 100, "{largest}");
    }

    #[test]
    fn a_cache_never_grows_beyond_what_is_needed() {
        let layers = KeysAndValues::reserve(1, 2, 1, &Placement::default()).unwrap();
        let mut cache = TokenCache::new(layers, 2, 9);
        let mut sequences = vec![Vec::new(); 1];
        for token in 0..9 {
            let first = cache.take(1, &mut sequences).unwrap();
            sequences[0].push(first as u32);
            assert_eq!(first, token);
        }
        assert_eq!(cache.rows, 9);
        assert!(cache.take(1, &mut sequences).is_err());
    }
}
