//! Scans: rank the lists, read the nearest ones, return their rows in the order
//! of distances, and go on to further lists when those rows are used up.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use faiss_ivf::{CodeScanner, FaissError};
use ivf_store::{Block, ListCursor, ListLayout, Meta, Tid};
use pgrx::{PgMemoryContexts, PgSqlErrorCode, check_for_interrupts, pg_guard, pg_sys};

use super::cache;
use super::opclass::OpClass;
use super::options::{self, IterativeScan};
use super::probes::Probes;
use super::report::{OrRaise, Report, raise_out_of_memory};
use super::storage::RelationStore;
use super::work::Work;

/// A row that was found and not yet returned.
#[derive(Clone, Copy)]
struct Candidate {
    key: f32,
    tid: Tid,
}

impl Ord for Candidate {
    /// The greatest candidate is the nearest, which a heap gives first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.key.total_cmp(&self.key)).then(other.tid.cmp(&self.tid))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Candidate {}

/// A list, and how near its centroid is to the query.
#[derive(Clone, Copy)]
struct RankedList {
    key: f32,
    list: u32,
    first: Block,
}

/// What a scan keeps between its calls.
#[derive(Default)]
pub(super) struct ScanState {
    progress: Option<Progress>,
    /// Work of scans before the last rescan.
    work_before: Work,
}

impl ScanState {
    /// Ends a scan that has begun.
    fn finish(&mut self) {
        if let Some(progress) = self.progress.take() {
            self.work_before += progress.work;
        }
    }

    /// Work since the scan was opened.
    #[cfg(feature = "pg18")]
    pub fn work(&self) -> Work {
        let mut work = self.work_before;
        if let Some(progress) = &self.progress {
            work += progress.work;
        }
        work
    }
}

/// A scan that has begun.
struct Progress {
    layout: ListLayout,
    opclass: &'static OpClass,
    /// `None` if the query is NULL or has no direction: all rows are equally near.
    scanner: Option<Box<dyn CodeScanner>>,
    /// All lists; those before `probed` were read.
    lists: Vec<RankedList>,
    probed: usize,
    probes: Probes,
    /// No further lists are read when so many rows were.
    most_rows: u64,
    /// When so many rows were returned, further lists may have to be read.
    next_look: u64,
    keeps_order: bool,
    candidates: BinaryHeap<Candidate>,
    /// Key of the row returned last.
    last: f32,
    work: Work,
}

#[pg_guard]
pub(super) unsafe extern "C-unwind" fn ambeginscan(
    index: pg_sys::Relation,
    nkeys: std::ffi::c_int,
    norderbys: std::ffi::c_int,
) -> pg_sys::IndexScanDesc {
    // SAFETY: PostgreSQL passes an open index; the state lives as long as the
    // memory context of the scan, also when the scan ends in an error.
    unsafe {
        let scan = pg_sys::RelationGetIndexScan(index, nkeys, norderbys);
        (*scan).opaque = PgMemoryContexts::CurrentMemoryContext
            .leak_and_drop_on_delete(ScanState::default())
            .cast();
        scan
    }
}

#[pg_guard]
pub(super) unsafe extern "C-unwind" fn amrescan(
    scan: pg_sys::IndexScanDesc,
    _keys: pg_sys::ScanKey,
    _nkeys: std::ffi::c_int,
    orderbys: pg_sys::ScanKey,
    _norderbys: std::ffi::c_int,
) {
    // SAFETY: PostgreSQL passes a scan of ours, with room for its order-by keys,
    // which may be those that it has already.
    unsafe {
        (*(*scan).opaque.cast::<ScanState>()).finish();
        let count = (*scan).numberOfOrderBys as usize;
        if !orderbys.is_null() && count > 0 {
            std::ptr::copy(orderbys, (*scan).orderByData, count);
        }
    }
}

#[pg_guard]
pub(super) unsafe extern "C-unwind" fn amendscan(scan: pg_sys::IndexScanDesc) {
    // SAFETY: PostgreSQL passes a scan of ours. The state itself goes with its
    // memory context; what it holds goes now.
    unsafe { (*(*scan).opaque.cast::<ScanState>()).progress = None };
}

#[pg_guard]
pub(super) unsafe extern "C-unwind" fn amgettuple(
    scan: pg_sys::IndexScanDesc,
    _direction: pg_sys::ScanDirection::Type,
) -> bool {
    // SAFETY: PostgreSQL passes a scan of ours on an open index. It scans
    // forward only, for amcanbackward is off.
    unsafe {
        let index = (*scan).indexRelation;
        let store = RelationStore::open(index);
        let state = &mut *(*scan).opaque.cast::<ScanState>();
        if state.progress.is_none() {
            state.progress = Some(begin(scan, &store));
        }
        let Some(progress) = &mut state.progress else {
            return false;
        };
        let Some(tid) = progress.next(index, &store) else {
            return false;
        };
        let block = tid.block();
        let heap_tid = &mut (*scan).xs_heaptid;
        heap_tid.ip_blkid.bi_hi = (block >> 16) as u16;
        heap_tid.ip_blkid.bi_lo = block as u16;
        heap_tid.ip_posid = tid.offset();
        (*scan).xs_recheck = false;
        // Distances are exact and rows come in their order.
        (*scan).xs_recheckorderby = false;
        true
    }
}

/// Reads the query and ranks the lists.
///
/// # Safety
/// `scan` must be a scan of the open index that `store` is of.
unsafe fn begin(scan: pg_sys::IndexScanDesc, store: &RelationStore) -> Progress {
    // SAFETY: the caller's promise; there is an order-by key, checked first.
    unsafe {
        let index = (*scan).indexRelation;
        check_scan(scan);
        count_scan(scan);
        let meta = Meta::read(store).or_raise(index);
        let opclass = OpClass::of(index);
        let query = query_of(&*(*scan).orderByData, opclass, meta.dimensions).or_raise(index);
        let scanner = query
            .as_ref()
            .map(|query| opclass.codec().scanner(opclass.metric(), query))
            .transpose()
            .or_raise(index);
        let lists = cache::with_lists(index, store, &meta, |lists| {
            rank(lists, opclass, query.as_deref())
        })
        .or_raise(index);
        let probes = Probes::choose(index, store, &meta).or_raise(index);
        Progress {
            layout: meta.layout(),
            opclass,
            scanner,
            lists,
            probed: 0,
            probes,
            most_rows: options::max_scan_tuples().unwrap_or(u64::MAX),
            next_look: Probes::next_look(0),
            keeps_order: options::iterative_scan() != IterativeScan::RelaxedOrder,
            candidates: BinaryHeap::new(),
            last: f32::NEG_INFINITY,
            work: Work::begin(),
        }
    }
}

/// # Safety
/// `scan` must be a scan of ours.
unsafe fn check_scan(scan: pg_sys::IndexScanDesc) {
    // SAFETY: the caller's promise.
    let scan = unsafe { &*scan };
    if scan.numberOfOrderBys != 1 {
        Report::new(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            "a faiss_ivf index can be scanned in the order of one distance only",
        )
        .raise();
    }
    // SAFETY: a scan has a snapshot.
    let snapshot_type = unsafe { (*scan.xs_snapshot).snapshot_type };
    // A row that vacuum removed may have given its place to a new row, which an
    // MVCC snapshot does not see.
    if snapshot_type != pg_sys::SnapshotType::SNAPSHOT_MVCC
        && snapshot_type != pg_sys::SnapshotType::SNAPSHOT_HISTORIC_MVCC
    {
        Report::new(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            "a faiss_ivf index can be scanned under MVCC snapshots only",
        )
        .raise();
    }
}

/// The query as the index compares it, `None` if all rows are equally near.
///
/// # Safety
/// `key` must be an order-by key of an index of `opclass`.
unsafe fn query_of(
    key: &pg_sys::ScanKeyData,
    opclass: &OpClass,
    dimensions: u32,
) -> Result<Option<Vec<f32>>, FaissError> {
    if key.sk_flags & pg_sys::SK_ISNULL as i32 != 0 {
        return Ok(None);
    }
    let mut query = Vec::with_capacity(dimensions as usize);
    // SAFETY: the key is not NULL and of the operator's right-hand type.
    let is_comparable = unsafe { opclass.read(key.sk_argument, dimensions, &mut query) };
    opclass.make_comparable(dimensions as usize, &mut query)?;
    Ok(is_comparable.then_some(query))
}

fn rank(
    lists: &cache::Lists<'_>,
    opclass: &OpClass,
    query: Option<&[f32]>,
) -> Result<Vec<RankedList>, FaissError> {
    let mut distances = vec![0.0; lists.first.len()];
    if let Some(query) = query
        && distances.len() > 1
    {
        faiss_ivf::distances(opclass.metric(), query, lists.centroids, &mut distances)?;
    }
    Ok((0..)
        .zip(lists.first)
        .zip(distances)
        .map(|((list, &first), distance)| RankedList {
            key: opclass.key(distance),
            list,
            first,
        })
        .collect())
}

impl Progress {
    /// The next row, `None` when there are no more.
    ///
    /// # Safety
    /// `index` must be the open index that `store` is of.
    unsafe fn next(&mut self, index: pg_sys::Relation, store: &RelationStore) -> Option<Tid> {
        if self.work.rows >= self.next_look {
            self.next_look = Probes::next_look(self.work.rows);
            let entries_per_list = self.work.entries as f64 / self.probed as f64;
            let wanted = (self.probes).before_row(self.next_look as f64, entries_per_list);
            let missing = (wanted.ceil() as usize).saturating_sub(self.probed);
            // SAFETY: the caller's promise.
            unsafe { self.read_lists(missing, index, store) };
        }
        loop {
            if let Some(candidate) = self.candidates.pop() {
                self.last = self.last.max(candidate.key);
                self.work.count_row();
                return Some(candidate.tid);
            }
            let step = self.probed.max(self.probes.first as usize);
            // SAFETY: the caller's promise.
            if unsafe { self.read_lists(step, index, store) } == 0 {
                return None;
            }
        }
    }

    /// Reads the `wanted` nearest of the lists that were not read yet, or as many as may
    /// be read. Returns how many it has read.
    ///
    /// # Safety
    /// As for [`Self::next`].
    unsafe fn read_lists(
        &mut self,
        wanted: usize,
        index: pg_sys::Relation,
        store: &RelationStore,
    ) -> usize {
        let remaining = &mut self.lists[self.probed..];
        let count = wanted.min(self.probes.most as usize - self.probed);
        if count == 0 || self.work.entries >= self.most_rows {
            return 0;
        }
        if count < remaining.len() {
            let by_key = |a: &RankedList, b: &RankedList| a.key.total_cmp(&b.key);
            remaining.select_nth_unstable_by(count - 1, by_key);
        }
        let mut found = std::mem::take(&mut self.candidates).into_vec();
        let mut distances = Vec::new();
        for place in self.probed..self.probed + count {
            let ranked = self.lists[place];
            // SAFETY: the caller's promise.
            let work = unsafe { self.read_list(ranked, index, store, &mut distances, &mut found) };
            self.work += work;
        }
        self.probed += count;
        self.work.show();
        self.candidates = BinaryHeap::from(found);
        count
    }

    /// Reads one list, page by page, and returns what work that was. `distances` is
    /// scratch space.
    ///
    /// # Safety
    /// As for [`Self::next`].
    unsafe fn read_list(
        &self,
        list: RankedList,
        index: pg_sys::Relation,
        store: &RelationStore,
        distances: &mut Vec<f32>,
        found: &mut Vec<Candidate>,
    ) -> Work {
        let mut work = Work {
            lists: 1,
            ..Work::default()
        };
        let mut cursor = ListCursor::new(list.list, list.first);
        loop {
            check_for_interrupts!();
            let mut scanned = Ok(());
            let mut has_room = true;
            let more = cursor.advance(store, self.layout, |page| {
                work.entries += page.len() as u64;
                distances.clear();
                distances.resize(page.len(), 0.0);
                if let Some(scanner) = &self.scanner {
                    scanned = scanner.scan(page.codes(), page.len(), distances);
                }
                has_room = found.try_reserve(page.len()).is_ok();
                if !has_room {
                    return;
                }
                for (entry, &distance) in distances.iter().enumerate() {
                    let key = self.opclass.key(distance);
                    if self.keeps_order && key < self.last {
                        work.left_out += 1;
                        continue;
                    }
                    let tid = page.tid(entry);
                    found.push(Candidate { key, tid });
                }
            });
            if !has_room {
                raise_out_of_memory(2 * found.len() * size_of::<Candidate>());
            }
            // SAFETY: the caller's promise.
            unsafe {
                scanned.or_raise(index);
                if !more.or_raise(index) {
                    return work;
                }
            }
        }
    }
}

/// PostgreSQL's `pgstat_count_index_scan`, and what EXPLAIN counts since 18.
///
/// # Safety
/// `scan` must be a scan of ours on an open index.
unsafe fn count_scan(scan: pg_sys::IndexScanDesc) {
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
