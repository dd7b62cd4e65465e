//! Measures, while an index is built, how many lists a search must read: for rows
//! that were held back from the training the nearest rows of the whole table are
//! found exactly, and then the lists in which they lie.

use faiss_ivf::FaissError;
use ivf_store::{RecallCurve, Tid};

use super::sample::{Drawn, Source};
use crate::index::opclass::OpClass;
use crate::index::recall::{NEIGHBOURS, Nearest, ranks};

/// Rows whose neighbours are looked for.
pub(super) struct HeldBack {
    /// `(rows, dimensions)`
    queries: Vec<f32>,
    tids: Vec<Tid>,
    nearest: Vec<Nearest>,
}

impl HeldBack {
    pub fn none() -> Self {
        Self {
            queries: Vec::new(),
            tids: Vec::new(),
            nearest: Vec::new(),
        }
    }

    pub fn new(source: &Source, rows: Drawn) -> Self {
        debug_assert_eq!(
            rows.vectors.len(),
            rows.tids.len() * source.dimensions as usize
        );
        Self {
            nearest: vec![Nearest::new(NEIGHBOURS); rows.tids.len()],
            queries: rows.vectors,
            tids: rows.tids,
        }
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
                if tids[row] != *own {
                    nearest.offer(opclass.key(distance), lists[row]);
                }
            }
        }
        Ok(())
    }

    /// The recall curve of the index with these `centroids` `(lists, dimensions)`.
    pub fn curve(
        &self,
        opclass: &OpClass,
        lists: u32,
        centroids: &[f32],
    ) -> Result<RecallCurve, FaissError> {
        let dimensions = centroids.len() / lists as usize;
        let mut all = Vec::with_capacity(self.tids.len());
        if dimensions > 0 {
            for (query, nearest) in self.queries.chunks_exact(dimensions).zip(&self.nearest) {
                all.push(ranks(opclass, query, centroids, nearest)?);
            }
        }
        Ok(RecallCurve::measured(lists, &all))
    }
}
