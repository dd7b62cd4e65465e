//! Scans: rank the lists, read the nearest ones, return their rows in the order
//! of distances, and go on to further lists when those rows are used up.

use std::rc::Rc;

use faiss_ivf::FaissError;
use ivf_store::{ListCursor, ListLayout, Meta, PageStore, RowPage, Tid};
use pgrx::{PgMemoryContexts, PgSqlErrorCode, check_for_interrupts, pg_guard, pg_sys};

use super::candidates::{Ahead, Candidates, Keyed, Nearest, RowPlace};
use super::exact::RowReader;
use super::list_reading::{Comparison, ListReading};
use super::opclass::OpClass;
use super::options::{self, IterativeScan};
use super::probes::{Probes, deviations};
use super::ranking::Ranking;
use super::report::{OrRaise, Report, raise_out_of_memory};
use super::storage::RelationStore;
use super::trained::Trained;
use super::work::{Work, count_scan};

/// What a scan keeps between its calls.
pub(super) struct ScanState {
    /// Where things live that last as long as the scan.
    memory: pg_sys::MemoryContext,
    progress: Option<Progress>,
    /// Work of scans before the last rescan.
    work_before: Work,
}

impl ScanState {
    /// Ends a scan that has begun.
    ///
    /// # Safety
    /// The relations of the scan must still be open.
    unsafe fn finish(&mut self) {
        if let Some(progress) = self.progress.take() {
            self.work_before += progress.work;
            progress.candidates.give_back();
            if let Some(reader) = progress.reader {
                // SAFETY: the caller's promise.
                unsafe { reader.close() };
            }
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
    trained: Rc<Trained>,
    /// `None` if the query is NULL or has no direction: all rows are equally near.
    comparison: Option<Comparison>,
    /// Opened when a row is read from the table for the first time.
    reader: Option<RowReader>,
    lists: Ranking,
    /// So many of the nearest lists were read.
    probed: usize,
    probes: Probes,
    /// No further lists are read when so many rows were.
    most_rows: u64,
    /// When so many rows were returned, further lists may have to be read.
    next_look: u64,
    keeps_order: bool,
    candidates: Candidates,
    /// Key of the row returned last.
    last: f32,
    work: Work,
    scratch: Scratch,
}

/// Rows of so many of the next candidates are brought into the processor's cache.
const TOUCHED_ROWS: usize = 8;

/// Memory that is used again and again.
#[derive(Default)]
struct Scratch {
    keys: Vec<f32>,
    vector: Vec<f32>,
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
            .leak_and_drop_on_delete(ScanState {
                memory: pg_sys::CurrentMemoryContext,
                progress: None,
                work_before: Work::default(),
            })
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
    unsafe { (*(*scan).opaque.cast::<ScanState>()).finish() };
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
        let store = store.with_recent(&progress.trained.recent);
        let at = At {
            scan,
            index,
            store: &store,
            memory: state.memory,
        };
        let Some(tid) = progress.next(&at) else {
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
        let trained = Trained::of(index, store, &meta);
        let target = options::target_recall(index);
        let comparison = query
            .map(|query| Comparison::new(opclass, &trained, query, deviations(target)))
            .transpose()
            .or_raise(index);
        let mut lists = Ranking::new(&trained, comparison.as_ref()).or_raise(index);
        let mut probes = Probes::choose(index, &trained.curve, &meta);
        if let Some(comparison) = &comparison {
            let of_query = probes.of_query(&mut lists, comparison, &trained);
            probes = of_query.or_raise(index);
        }
        Progress {
            layout: meta.layout,
            opclass,
            trained,
            comparison,
            reader: None,
            lists,
            probed: 0,
            probes,
            most_rows: options::max_scan_tuples().unwrap_or(u64::MAX),
            next_look: Probes::next_look(0),
            keeps_order: options::iterative_scan() != IterativeScan::RelaxedOrder,
            candidates: Candidates::new(meta.layout.row_capacity()),
            last: f32::NEG_INFINITY,
            work: Work::begin(),
            scratch: Scratch::default(),
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

/// Where a scan is called.
struct At<'a> {
    scan: pg_sys::IndexScanDesc,
    index: pg_sys::Relation,
    store: &'a RelationStore,
    /// Where things live that last as long as the scan.
    memory: pg_sys::MemoryContext,
}

impl Progress {
    /// The next row, `None` when there are no more.
    ///
    /// # Safety
    /// `at` must be where PostgreSQL called the scan.
    unsafe fn next(&mut self, at: &At<'_>) -> Option<Tid> {
        if self.work.rows >= self.next_look {
            self.next_look = Probes::next_look(self.work.rows);
            let entries_per_list = self.work.entries as f64 / self.probed as f64;
            let wanted = (self.probes).before_row(self.next_look as f64, entries_per_list);
            let missing = (wanted.ceil() as usize).saturating_sub(self.probed);
            // SAFETY: the caller's promise.
            unsafe { self.read_lists(missing, at) };
        }
        loop {
            // SAFETY: the caller's promise.
            unsafe {
                match self.candidates.pop() {
                    Some(Nearest::Exact(row)) => {
                        self.last = self.last.max(row.key);
                        self.work.count_row();
                        return Some(row.tid);
                    }
                    Some(Nearest::Refined(tid)) => self.rerank(tid, at),
                    Some(Nearest::Coded(place)) => self.refine(place, at),
                    None => {
                        let step = self.probed.max(self.probes.first as usize);
                        if self.read_lists(step, at) == 0 {
                            return None;
                        }
                    }
                }
            }
        }
    }

    /// Takes a row whose distance is known, unless it comes too late.
    fn add_exact(&mut self, tid: Tid, key: f32) {
        if self.keeps_order && key < self.last {
            self.work.left_out += 1;
        } else {
            self.candidates.add_exact(Keyed { key, tid });
        }
    }

    /// Reads the vector of a row from the table, if the snapshot sees it.
    ///
    /// # Safety
    /// As for [`Self::next`].
    unsafe fn rerank(&mut self, tid: Tid, at: &At<'_>) {
        check_for_interrupts!();
        let Some(comparison) = &self.comparison else {
            self.add_exact(tid, 0.0);
            return;
        };
        let dim = comparison.query.len();
        let reader = self.reader.get_or_insert_with(|| {
            // SAFETY: the scan and its table stay open; the reader lives in the memory of
            // the scan.
            unsafe { RowReader::new(at.scan, at.memory, self.opclass, dim as u32) }
        });
        let vector = &mut self.scratch.vector;
        vector.clear();
        // SAFETY: the caller's promise.
        if !unsafe { reader.read(tid, vector) } {
            return;
        }
        self.work.reranked += 1;
        let opclass = self.opclass;
        let mut distance = [0.0];
        let computed = opclass.make_comparable(dim, vector).and_then(|()| {
            faiss_ivf::distances(opclass.metric(), &comparison.query, vector, &mut distance)
        });
        // SAFETY: the caller's promise.
        unsafe { computed.or_raise(at.index) };
        self.add_exact(tid, opclass.key(distance[0]));
    }

    /// Reads the row page of a candidate.
    ///
    /// # Safety
    /// As for [`Self::next`].
    unsafe fn refine(&mut self, place: RowPlace, at: &At<'_>) {
        check_for_interrupts!();
        self.work.refined += 1;
        self.look_ahead(at);
        let list = self.lists.get(place.list as usize).list;
        let index = place.index;
        let refined = {
            // SAFETY: the caller's promise.
            let bytes = unsafe { at.store.read(place.block).or_raise(at.index) };
            let page = RowPage::parse(&bytes, place.block, self.layout, list);
            // SAFETY: as above.
            let page = unsafe { page.or_raise(at.index) };
            let Some(tid) = page.tid(index) else {
                // Vacuum has removed it.
                return;
            };
            let Some(comparison) = &self.comparison else {
                self.add_exact(tid, 0.0);
                return;
            };
            if self.trained.coding.is_exact() {
                let mut distance = [0.0];
                let scanned = comparison.flat.scan(page.code(index), 1, &mut distance);
                scanned.map(|()| (tid, true, self.opclass.key(distance[0])))
            } else {
                let factors = [0, 1, 2].map(|factor| page.factor(factor, index));
                let bound = comparison.coded.refine(page.code(index), factors);
                bound.map(|bound| (tid, false, bound))
            }
        };
        // SAFETY: the caller's promise.
        let (tid, is_exact, key) = unsafe { refined.or_raise(at.index) };
        if is_exact {
            self.add_exact(tid, key);
        } else {
            self.candidates.add_refined(Keyed { key, tid });
        }
    }

    /// Asks for the row pages of the next candidates.
    fn look_ahead(&mut self, at: &At<'_>) {
        let prefetched = &mut self.work.prefetched;
        (self.candidates).look_ahead(Ahead::Read, at.store.read_ahead(), |row| {
            *prefetched += u64::from(at.store.prefetch(row.block));
        });
        (self.candidates).look_ahead(Ahead::Touch, TOUCHED_ROWS, |row| {
            at.store.touch(row.block, self.layout.row_parts(row.index));
        });
    }

    /// Reads the `wanted` nearest of the lists that were not read yet, or as many as may
    /// be read. Returns how many it has read.
    ///
    /// # Safety
    /// As for [`Self::next`].
    unsafe fn read_lists(&mut self, wanted: usize, at: &At<'_>) -> usize {
        let count = wanted.min(self.probes.most as usize - self.probed);
        if count == 0 || self.work.entries >= self.most_rows {
            return 0;
        }
        let sorted =
            (self.lists).sort(self.probed + count, self.comparison.as_ref(), &self.trained);
        // SAFETY: the caller's promise.
        unsafe { sorted.or_raise(at.index) };
        let mut cursors: Vec<(usize, ListCursor)> = (self.probed..self.probed + count)
            .map(|place| (place, self.lists.get(place)))
            .map(|(place, list)| (place, ListCursor::new(list.list, list.first)))
            .collect();
        self.work.lists += count as u64;
        // A page of each list in turn: those that follow are known early.
        while !cursors.is_empty() {
            let ahead = at.store.read_ahead();
            let mut announced = 0;
            for turn in 0..cursors.len() {
                announced = announced.max(turn);
                while announced < cursors.len().min(turn + ahead) {
                    if let Some(block) = cursors[announced].1.next() {
                        self.work.prefetched += u64::from(at.store.prefetch(block));
                    }
                    announced += 1;
                }
                if let Some(block) = cursors.get(turn + 1).and_then(|(_, cursor)| cursor.next()) {
                    at.store.touch(block, ListLayout::first_parts());
                }
                let (place, cursor) = &mut cursors[turn];
                // SAFETY: the caller's promise.
                unsafe { self.read_page(*place, cursor, at) };
            }
            cursors.retain(|(_, cursor)| cursor.next().is_some());
        }
        self.probed += count;
        self.work.show();
        count
    }

    /// Reads the next page of a list.
    ///
    /// # Safety
    /// As for [`Self::next`].
    unsafe fn read_page(&mut self, place: usize, cursor: &mut ListCursor, at: &At<'_>) {
        check_for_interrupts!();
        let ranked = self.lists.get(place);
        let mut reading = ListReading {
            opclass: self.opclass,
            layout: self.layout,
            comparison: self.comparison.as_mut(),
            is_lossy: self.trained.coding.is_lossy(),
            key: ranked.key,
            square: (self.trained.lists.squares)
                .get(ranked.list as usize)
                .copied(),
            place: place as u32,
            least: if self.keeps_order {
                self.last
            } else {
                f32::NEG_INFINITY
            },
            keys: &mut self.scratch.keys,
        };
        let (found, work) = (&mut self.candidates, &mut self.work);
        let mut read = Ok(());
        let mut has_room = true;
        let advanced = cursor.advance(at.store, self.layout, |page| {
            has_room = found.reserve(page.len(), page.row_pages().len()).is_ok();
            if has_room {
                read = reading.page(page, found, work);
            }
        });
        if !has_room {
            raise_out_of_memory(2 * found.bytes());
        }
        // SAFETY: the caller's promise.
        unsafe {
            read.or_raise(at.index);
            advanced.or_raise(at.index);
        }
    }
}
