//! How recall is measured: by the lists in which the true nearest rows of queries lie.

use faiss_ivf::{Coding, FaissError};
use ivf_store::{QueryLists, RECALL_ROWS, RecallCurve, Tid};

use super::opclass::OpClass;
use super::sample::Drawn;
use super::trained::Lists;

/// So many nearest rows of a query are looked for.
const NEIGHBOURS: usize = RECALL_ROWS[RECALL_ROWS.len() - 1];

/// The nearest rows of a query among those that were seen, with their lists.
#[derive(Debug, Clone)]
struct Nearest {
    capacity: usize,
    /// Keys and lists, nearest first.
    rows: Vec<(f32, u32)>,
}

impl Nearest {
    fn new(capacity: usize) -> Self {
        Self {
            capacity,
            rows: Vec::with_capacity(capacity + 1),
        }
    }

    /// Takes a row in `list`, whose key is smaller the nearer it is, if it is one of
    /// the nearest.
    fn offer(&mut self, key: f32, list: u32) {
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

/// How the lists lie around `query`, ordered by the distance of their `centroids`
/// `(lists, dimensions)`, and in which of them its nearest rows are.
fn lists_around(
    opclass: &OpClass,
    query: &[f32],
    centroids: &[f32],
    nearest: &Nearest,
) -> Result<QueryLists, FaissError> {
    let mut keys = vec![0.0; centroids.len() / query.len()];
    faiss_ivf::distances(opclass.metric(), query, centroids, &mut keys)?;
    for key in &mut keys {
        *key = opclass.key(*key);
    }
    let mut ascending = keys.clone();
    ascending.sort_unstable_by(f32::total_cmp);
    let length = faiss_ivf::squared(query).sqrt() as f32;
    let gap = |key| faiss_ivf::gap(opclass.metric(), length, ascending[0], key);
    let rank_and_gap = |list: u32| {
        let own = keys[list as usize];
        let nearer = ascending.partition_point(|key| key.total_cmp(&own).is_lt());
        (1 + nearer as u32, gap(own))
    };
    let nearest = nearest.rows.iter().map(|(_, list)| rank_and_gap(*list));
    let ranks = RecallCurve::ranks(keys.len() as u32);
    Ok(QueryLists {
        nearest: nearest.collect(),
        gaps: ranks
            .map(|rank| gap(ascending[rank as usize - 1]))
            .collect(),
    })
}

/// Queries whose nearest rows are looked for.
pub(super) struct Queries {
    /// `(rows, dimensions)`
    queries: Vec<f32>,
    /// `(rows, code_dim)`: as they are compared with centroids.
    mapped: Vec<f32>,
    /// The row that each is, if it is one.
    tids: Vec<Option<Tid>>,
    nearest: Vec<Nearest>,
}

impl Queries {
    pub fn none() -> Self {
        Self {
            queries: Vec::new(),
            mapped: Vec::new(),
            tids: Vec::new(),
            nearest: Vec::new(),
        }
    }

    /// Queries that were drawn, for an index with such codes.
    pub fn new(
        opclass: &OpClass,
        dimensions: u32,
        drawn: Drawn,
        coding: &Coding,
    ) -> Result<Self, FaissError> {
        let mut queries = drawn.vectors;
        opclass.make_comparable(dimensions as usize, &mut queries)?;
        Ok(Self {
            nearest: vec![Nearest::new(NEIGHBOURS); drawn.tids.len()],
            mapped: coding.map(&queries)?,
            queries,
            tids: drawn.tids,
        })
    }

    /// Looks at rows of the table: `vectors` `(rows, dimensions)`, as they are compared,
    /// and the lists that they are in. A row is no neighbour of itself.
    pub fn look_at(
        &mut self,
        opclass: &OpClass,
        dimensions: usize,
        vectors: &[f32],
        tids: &[Tid],
        lists: &[u32],
    ) -> Result<(), FaissError> {
        let wanted = NEIGHBOURS + 1;
        let metric = opclass.metric();
        let found = faiss_ivf::nearest(metric, dimensions, &self.queries, vectors, wanted)?;
        for ((nearest, own), found) in self.nearest.iter_mut().zip(&self.tids).zip(found) {
            for (distance, row) in found {
                if Some(tids[row]) != *own {
                    nearest.offer(opclass.key(distance), lists[row]);
                }
            }
        }
        Ok(())
    }

    /// The recall curve of an index with these lists.
    pub fn curve(&self, opclass: &OpClass, lists: &Lists) -> Result<RecallCurve, FaissError> {
        let count = lists.squares.len();
        let dim = lists.centroids.len() / count.max(1);
        let mut all = Vec::with_capacity(self.tids.len());
        if dim > 0 {
            for (query, nearest) in self.mapped.chunks_exact(dim).zip(&self.nearest) {
                all.push(lists_around(opclass, query, &lists.centroids, nearest)?);
            }
        }
        Ok(RecallCurve::measured(count.max(1) as u32, &all))
    }
}
