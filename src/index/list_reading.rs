//! What a scan makes of the pages of a list.

use faiss_ivf::{CodeFactors, CodeScanner, CodedQuery, FaissError};
use ivf_store::{ListLayout, ListPage};

use super::candidates::{Candidates, Keyed};
use super::opclass::OpClass;
use super::trained::Trained;
use super::work::Work;

/// How a query is compared with what lists hold.
pub(super) struct Comparison {
    pub coded: CodedQuery,
    /// Compares vectors as they are stored.
    pub flat: Box<dyn CodeScanner>,
    /// As it is compared.
    pub query: Vec<f32>,
}

impl Comparison {
    /// `deviations`: see [`faiss_ivf::Coding::query`].
    pub fn new(
        opclass: &OpClass,
        trained: &Trained,
        query: Vec<f32>,
        deviations: f32,
    ) -> Result<Self, FaissError> {
        Ok(Self {
            coded: trained.coding.query(&query, deviations)?,
            flat: opclass.codec().scanner(opclass.metric(), &query)?,
            query,
        })
    }
}

/// A list that is being read.
pub(super) struct ListReading<'a> {
    pub opclass: &'static OpClass,
    pub layout: ListLayout,
    pub comparison: Option<&'a mut Comparison>,
    pub is_lossy: bool,
    /// Key and squared length of its centroid.
    pub key: f32,
    pub square: Option<f32>,
    /// Its place among the ranked lists.
    pub place: u32,
    /// Rows whose exact key is smaller are left out.
    pub least: f32,
    /// Scratch space.
    pub keys: &'a mut Vec<f32>,
}

impl ListReading<'_> {
    /// Takes what a page has, under its lock.
    pub fn page(
        &mut self,
        page: &ListPage<'_>,
        found: &mut Candidates,
        work: &mut Work,
    ) -> Result<(), FaissError> {
        work.entries += (page.len() - page.free()) as u64;
        self.compute(page)?;
        if self.layout.row_capacity() > 0 {
            found.push_coded(
                self.place,
                self.keys,
                page.row_pages().map(|(block, _)| block),
            );
            return Ok(());
        }
        for (&key, tid) in self.keys.iter().zip(page.tids()) {
            let Some(tid) = tid else {
                continue;
            };
            let candidate = Keyed { key, tid };
            if self.is_lossy {
                found.push_refined(candidate);
            } else if key < self.least {
                work.left_out += 1;
            } else {
                found.push_exact(candidate);
            }
        }
        Ok(())
    }

    /// Keys of all entries of a page, or bounds on them.
    fn compute(&mut self, page: &ListPage<'_>) -> Result<(), FaissError> {
        self.keys.clear();
        self.keys.resize(page.len(), 0.0);
        let Some(comparison) = &mut self.comparison else {
            return Ok(());
        };
        if self.is_lossy {
            let list = comparison.coded.list(self.key, self.square.unwrap_or(0.0));
            let factors = CodeFactors {
                scale: page.factor(0),
                offset: page.factor(1),
                error: page.factor(2),
            };
            let coded = &mut comparison.coded;
            return coded.bounds(list, page.codes(), factors, page.len(), self.keys);
        }
        comparison.flat.scan(page.codes(), page.len(), self.keys)?;
        for key in self.keys.iter_mut() {
            *key = self.opclass.key(*key);
        }
        Ok(())
    }
}
