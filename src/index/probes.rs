//! How many lists a scan reads: what a setting says, or as few as the recall curve
//! allows for the recall that is wanted.

use ivf_store::{Meta, RecallCurve, StoreError};
use pgrx::pg_sys;

use super::options::{self, IterativeScan};
use super::storage::RelationStore;

/// Numbers of lists.
#[derive(Debug, Clone, Copy)]
pub(super) struct Probes {
    /// Lists that a scan reads before it returns its first row.
    pub first: u32,
    /// Lists that it reads at most.
    pub most: u32,
}

impl Probes {
    /// For a scan of `index` by the settings of the session.
    ///
    /// # Safety
    /// `index` must be the open index that `store` and `meta` are of.
    pub unsafe fn choose(
        index: pg_sys::Relation,
        store: &RelationStore,
        meta: &Meta,
    ) -> Result<Self, StoreError> {
        let first = match options::nprobe() {
            Some(nprobe) => nprobe,
            None => {
                // SAFETY: the caller's promise.
                let target = unsafe { options::target_recall(index) };
                RecallCurve::read(store, meta)?.nprobe(target)
            }
        };
        let first = first.clamp(1, meta.lists);
        let most = match (options::iterative_scan(), options::max_probes()) {
            (IterativeScan::Off, _) => first,
            (_, None) => meta.lists,
            (_, Some(most)) => most.clamp(first, meta.lists),
        };
        Ok(Self { first, most })
    }
}
