//! How many lists a scan reads: what a setting says, or as few as the recall curve
//! allows for the recall that is wanted.

use ivf_store::{Meta, RECALL_ROWS, RecallCurve, StoreError};
use pgrx::pg_sys;

use super::options::{self, IterativeScan};
use super::storage::RelationStore;

/// A scan has read at least so many times as many entries as it has returned rows, as
/// long as there are further lists: of what lies in lists, only the nearer part is known
/// to be nearer than what lies in others.
const ENTRIES_PER_ROW: u64 = 8;

/// Numbers of lists.
#[derive(Debug, Clone, Copy)]
pub(super) struct Probes {
    /// Lists that a scan reads before it returns its first row.
    pub first: u32,
    /// Lists that it reads at most.
    pub most: u32,
    /// The number of lists that so many times as many rows take is so many times as
    /// large to the power of this.
    growth: f64,
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
        let (first, growth) = match options::nprobe() {
            // A number that somebody sets holds for any number of rows.
            Some(nprobe) => (nprobe, 0.0),
            None => {
                // SAFETY: the caller's promise.
                let target = unsafe { options::target_recall(index) };
                let [few, many] = RecallCurve::read(store, meta)?.nprobe(target);
                let [few_rows, many_rows] = RECALL_ROWS.map(|rows| rows as f64);
                let growth = (f64::from(many) / f64::from(few)).ln() / (many_rows / few_rows).ln();
                (few, growth)
            }
        };
        let first = first.clamp(1, meta.lists);
        let most = match (options::iterative_scan(), options::max_probes()) {
            (IterativeScan::Off, _) => first,
            (_, None) => meta.lists,
            (_, Some(most)) => most.clamp(first, meta.lists),
        };
        Ok(Self {
            first,
            most,
            growth,
        })
    }

    /// How many lists a scan has read before it returns row number `row`, from 1, if the
    /// lists have `entries_per_list` entries on average.
    pub fn before_row(&self, row: f64, entries_per_list: f64) -> f64 {
        let more_rows = (row / RECALL_ROWS[0] as f64).max(1.0);
        let for_recall = f64::from(self.first) * more_rows.powf(self.growth);
        let for_order = row * ENTRIES_PER_ROW as f64 / entries_per_list.max(1.0);
        (for_recall.max(for_order)).clamp(self.first.into(), self.most.into())
    }

    /// When a scan that has returned `returned` rows looks again whether it should read
    /// further lists: not for each row, for lists are read best several at a time.
    pub fn next_look(returned: u64) -> u64 {
        (2 * returned).max(RECALL_ROWS[0] as u64)
    }
}
