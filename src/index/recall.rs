//! How recall is measured: by the lists in which the true nearest rows of queries lie.

use faiss_ivf::{Coding, FaissError};
use ivf_store::{QueryLists, RECALL_ROWS, RecallCurve, Tid};

use super::opclass::OpClass;
use super::sample::Drawn;
use super::trained::Lists;

/// So many nearest rows of a query are looked for.
const NEIGHBOURS: usize = RECALL_ROWS[RECALL_ROWS.len() - 1];

/// Distances that are looked at together.
const LOOKED_AT: usize = 64;

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

    /// The key that a row must be below to be one of the nearest.
    fn bound(&self) -> f32 {
        match self.rows.last() {
            Some((worst, _)) if self.rows.len() == self.capacity => *worst,
            // Greater in the total order than any key.
            _ => f32::from_bits(0x7fff_ffff),
        }
    }

    /// Takes a row in `list`, whose key is smaller the nearer it is, if it is one of
    /// the nearest.
    fn offer(&mut self, key: f32, list: u32) {
        if key.total_cmp(&self.bound()).is_ge() {
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
    vectors: QueryVectors,
    nearest: NearestRows,
}

/// Queries, as any thread may look at them.
pub(super) struct QueryVectors {
    count: usize,
    /// `(queries, dimensions)`
    vectors: Vec<f32>,
    /// `(queries, code_dim)`: as they are compared with centroids.
    mapped: Vec<f32>,
}

/// What was found for queries so far.
pub(super) struct NearestRows {
    /// The row that each query is, if it is one.
    tids: Vec<Option<Tid>>,
    of: Vec<Nearest>,
}

/// Rows that may be among the nearest of queries.
#[derive(Default)]
pub(super) struct NearRows {
    /// Query, key, and place among the rows that were looked at.
    found: Vec<(u32, f32, u32)>,
    /// By query and row.
    keys: Vec<f32>,
}

impl NearRows {
    /// Looks at rows: `vectors` `(rows, dimensions)`, as they are compared. Leaves out
    /// those whose keys are not below the bound of a query.
    pub fn find(
        &mut self,
        opclass: &OpClass,
        dimensions: usize,
        queries: &QueryVectors,
        bounds: &[f32],
        vectors: &[f32],
    ) -> Result<(), FaissError> {
        self.found.clear();
        let (metric, keys) = (opclass.metric(), &mut self.keys);
        faiss_ivf::all_distances(metric, dimensions, &queries.vectors, vectors, keys)?;
        for key in keys.iter_mut() {
            *key = opclass.key(*key);
        }
        let rows = vectors.len() / dimensions;
        let of_queries = keys.chunks_exact(rows.max(1));
        for ((query, keys), bound) in (0..).zip(of_queries).zip(bounds) {
            let is_near = |key: &f32| key.total_cmp(bound).is_lt();
            for (block, keys) in (0..).zip(keys.chunks(LOOKED_AT)) {
                // Nearly always there is none, and to find that out takes no branch.
                if !keys.iter().fold(false, |any, key| any | is_near(key)) {
                    continue;
                }
                let rows = (block * LOOKED_AT as u32..).zip(keys);
                let near = rows.filter(|(_, key)| is_near(key));
                self.found.extend(near.map(|(row, &key)| (query, key, row)));
            }
        }
        Ok(())
    }
}

impl QueryVectors {
    /// The number of queries.
    pub fn count(&self) -> usize {
        self.count
    }
}

impl NearestRows {
    /// By query, the key that a row must be below to be one of the nearest.
    pub fn bounds(&self, bounds: &mut Vec<f32>) {
        bounds.clear();
        bounds.extend(self.of.iter().map(Nearest::bound));
    }

    /// Takes what was found among rows with these row pointers, in these lists. A row is
    /// no neighbour of itself. The bounds with which it was found may be old ones, but
    /// rows must come in the same order to give the same result.
    pub fn take(&mut self, near: &NearRows, tids: &[Tid], lists: &[u32]) {
        for &(query, key, row) in &near.found {
            let (query, row) = (query as usize, row as usize);
            if Some(tids[row]) != self.tids[query] {
                self.of[query].offer(key, lists[row]);
            }
        }
    }
}

impl Queries {
    pub fn none() -> Self {
        Self {
            vectors: QueryVectors {
                count: 0,
                vectors: Vec::new(),
                mapped: Vec::new(),
            },
            nearest: NearestRows {
                tids: Vec::new(),
                of: Vec::new(),
            },
        }
    }

    /// Queries that were drawn, for an index with such codes.
    pub fn new(
        opclass: &OpClass,
        dimensions: u32,
        drawn: Drawn,
        coding: &Coding,
    ) -> Result<Self, FaissError> {
        let mut vectors = drawn.vectors;
        opclass.make_comparable(dimensions as usize, &mut vectors)?;
        Ok(Self {
            vectors: QueryVectors {
                count: drawn.tids.len(),
                mapped: coding.map(&vectors)?,
                vectors,
            },
            nearest: NearestRows {
                of: vec![Nearest::new(NEIGHBOURS); drawn.tids.len()],
                tids: drawn.tids,
            },
        })
    }

    /// The queries, and what was found for them.
    pub fn parts(&mut self) -> (&QueryVectors, &mut NearestRows) {
        (&self.vectors, &mut self.nearest)
    }

    /// Looks at rows of the table: `vectors` `(rows, dimensions)`, as they are compared,
    /// and the lists that they are in.
    pub fn look_at(
        &mut self,
        opclass: &OpClass,
        dimensions: usize,
        vectors: &[f32],
        tids: &[Tid],
        lists: &[u32],
    ) -> Result<(), FaissError> {
        let (mut bounds, mut near) = (Vec::new(), NearRows::default());
        self.nearest.bounds(&mut bounds);
        near.find(opclass, dimensions, &self.vectors, &bounds, vectors)?;
        self.nearest.take(&near, tids, lists);
        Ok(())
    }

    /// The recall curve of an index with these lists.
    pub fn curve(&self, opclass: &OpClass, lists: &Lists) -> Result<RecallCurve, FaissError> {
        let count = lists.squares.len();
        let dim = lists.centroids.len() / count.max(1);
        let mut all = Vec::with_capacity(self.nearest.of.len());
        if dim > 0 {
            let queries = self.vectors.mapped.chunks_exact(dim);
            for (query, nearest) in queries.zip(&self.nearest.of) {
                all.push(lists_around(opclass, query, &lists.centroids, nearest)?);
            }
        }
        Ok(RecallCurve::measured(count.max(1) as u32, &all))
    }
}
