//! What the last scan of this session did.

use std::cell::Cell;

use pgrx::iter::TableIterator;
use pgrx::{name, pg_extern};

/// Counts the work of a scan.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Work {
    /// Lists that were read.
    pub lists: u64,
    /// Entries whose distance was computed.
    pub entries: u64,
    /// Rows that were returned.
    pub rows: u64,
}

impl std::ops::AddAssign for Work {
    fn add_assign(&mut self, other: Self) {
        self.lists += other.lists;
        self.entries += other.entries;
        self.rows += other.rows;
    }
}

thread_local! {
    static LAST: Cell<Option<Work>> = const { Cell::new(None) };
}

impl Work {
    /// A scan begins: it is the last one from now on.
    pub fn begin() -> Self {
        let work = Self::default();
        work.show();
        work
    }

    pub fn count_lists(&mut self, lists: usize) {
        self.lists += lists as u64;
        self.show();
    }

    pub fn count_entries(&mut self, entries: u64) {
        self.entries += entries;
    }

    pub fn count_row(&mut self) {
        self.rows += 1;
        self.show();
    }

    fn show(self) {
        LAST.set(Some(self));
    }
}

/// What the last scan of a faiss_ivf index in this session did, no row if there was
/// none. (A parallel worker is a session of its own; these scans are not parallel.)
#[pg_extern(volatile, parallel_restricted)]
fn sight_index_last_scan() -> TableIterator<
    'static,
    (
        name!(lists_probed, i64),
        name!(entries_scanned, i64),
        name!(rows_returned, i64),
    ),
> {
    let row = |work: Work| (work.lists as i64, work.entries as i64, work.rows as i64);
    TableIterator::new(LAST.get().map(row))
}
