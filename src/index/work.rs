//! What scans do: counted for PostgreSQL, and told of the last one of this session.

use std::cell::Cell;

use pgrx::iter::TableIterator;
use pgrx::{name, pg_extern, pg_sys};

/// Counts the work of a scan.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Work {
    /// Lists that were read.
    pub lists: u64,
    /// Entries whose distance was computed.
    pub entries: u64,
    /// Entries whose refine codes were read.
    pub refined: u64,
    /// Rows whose vectors were read from the table.
    pub reranked: u64,
    /// Rows that were returned.
    pub rows: u64,
    /// Rows that were left out to keep the order: they were found when rows that are
    /// farther had been returned.
    pub left_out: u64,
    /// Pages of the index that the system was asked to read ahead.
    pub prefetched: u64,
}

impl std::ops::AddAssign for Work {
    fn add_assign(&mut self, other: Self) {
        self.lists += other.lists;
        self.entries += other.entries;
        self.refined += other.refined;
        self.reranked += other.reranked;
        self.rows += other.rows;
        self.left_out += other.left_out;
        self.prefetched += other.prefetched;
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

    pub fn count_row(&mut self) {
        self.rows += 1;
        self.show();
    }

    /// From now on this is what the last scan did.
    pub fn show(self) {
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
        name!(entries_refined, i64),
        name!(rows_reranked, i64),
        name!(rows_returned, i64),
        name!(rows_left_out, i64),
        name!(pages_prefetched, i64),
    ),
> {
    let row = |work: Work| {
        let counts = [
            work.lists,
            work.entries,
            work.refined,
            work.reranked,
            work.rows,
            work.left_out,
            work.prefetched,
        ];
        counts.map(|count| count as i64).into()
    };
    TableIterator::new(LAST.get().map(row))
}

/// PostgreSQL's `pgstat_count_index_scan`, and what EXPLAIN counts since 18.
///
/// # Safety
/// `scan` must be a scan of ours on an open index.
pub(super) unsafe fn count_scan(scan: pg_sys::IndexScanDesc) {
    // SAFETY: the caller's promise; the statistics belong to the relation.
    unsafe {
        let index = (*scan).indexRelation;
        #[cfg(not(feature = "pg14"))]
        if (*index).pgstat_info.is_null() && (*index).pgstat_enabled {
            pg_sys::pgstat_assoc_relation(index);
        }
        if let Some(statistics) = (*index).pgstat_info.as_mut() {
            #[cfg(any(feature = "pg14", feature = "pg15"))]
            {
                statistics.t_counts.t_numscans += 1;
            }
            #[cfg(not(any(feature = "pg14", feature = "pg15")))]
            {
                statistics.counts.numscans += 1;
            }
        }
        #[cfg(feature = "pg18")]
        if let Some(instrument) = (*scan).instrument.as_mut() {
            instrument.nsearches += 1;
        }
    }
}
