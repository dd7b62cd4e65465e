//! How recall is measured: by the lists in which the true nearest rows of queries lie.

use faiss_ivf::FaissError;
use ivf_store::RECALL_ROWS;

use super::opclass::OpClass;

/// So many nearest rows of a query are looked for.
pub(super) const NEIGHBOURS: usize = RECALL_ROWS[RECALL_ROWS.len() - 1];

/// The nearest rows of a query among those that were seen, with their lists.
#[derive(Debug, Clone)]
pub(super) struct Nearest {
    capacity: usize,
    /// Keys and lists, nearest first.
    rows: Vec<(f32, u32)>,
}

impl Nearest {
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            rows: Vec::with_capacity(capacity + 1),
        }
    }

    /// Takes a row in `list`, whose key is smaller the nearer it is, if it is one of
    /// the nearest.
    pub fn offer(&mut self, key: f32, list: u32) {
        let is_far = |worst: &(f32, u32)| key.total_cmp(&worst.0).is_ge();
        if self.rows.len() == self.capacity && self.rows.last().is_some_and(is_far) {
            return;
        }
        let place = self
            .rows
            .partition_point(|row| row.0.total_cmp(&key).is_le());
        self.rows.insert(place, (key, list));
        self.rows.truncate(self.capacity);
    }
}

/// For each of the nearest rows of `query` the rank, from 1, of its list, when lists are
/// ordered by the distance of their `centroids` `(lists, dimensions)`.
pub(super) fn ranks(
    opclass: &OpClass,
    query: &[f32],
    centroids: &[f32],
    nearest: &Nearest,
) -> Result<Vec<u32>, FaissError> {
    let mut keys = vec![0.0; centroids.len() / query.len()];
    faiss_ivf::distances(opclass.metric(), query, centroids, &mut keys)?;
    for key in &mut keys {
        *key = opclass.key(*key);
    }
    let rank = |list: u32| {
        let own = keys[list as usize];
        1 + keys
            .iter()
            .filter(|key| key.total_cmp(&own).is_lt())
            .count() as u32
    };
    Ok(nearest.rows.iter().map(|(_, list)| rank(*list)).collect())
}
