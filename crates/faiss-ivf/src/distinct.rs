//! Telling apart equal points.

use std::collections::HashSet;
use std::hash::{Hash, Hasher};

use crate::error::FaissError;

/// How many rows are looked at between two questions whether to stop.
const ROWS_PER_POLL: usize = 4096;

/// A vector that is equal to another when all its bits are.
struct Row<'a>(&'a [f32]);

impl Hash for Row<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for value in self.0 {
            state.write_u32(value.to_bits());
        }
    }
}

impl PartialEq for Row<'_> {
    fn eq(&self, other: &Self) -> bool {
        let mut pairs = self.0.iter().zip(other.0);
        pairs.all(|(a, b)| a.to_bits() == b.to_bits())
    }
}

impl Eq for Row<'_> {}

/// The distinct rows of `points` `(n, dim)` in the order of their first
/// appearance, or `None` as soon as there are more than `limit`.
pub(crate) fn distinct_rows<'a>(
    dim: usize,
    points: &'a [f32],
    limit: usize,
    interrupted: &dyn Fn() -> bool,
) -> Result<Option<Vec<&'a [f32]>>, FaissError> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for (number, row) in points.chunks_exact(dim).enumerate() {
        if number % ROWS_PER_POLL == 0 && interrupted() {
            return Err(FaissError::Interrupted);
        }
        if seen.insert(Row(row)) {
            if found.len() == limit {
                return Ok(None);
            }
            found.push(row);
        }
    }
    Ok(Some(found))
}
