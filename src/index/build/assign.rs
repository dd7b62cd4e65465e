//! From the rows of the table to the entries of the lists: which list each row belongs
//! to, and its codes.
//!
//! The backend alone reads the table and fills the sort. Batches of rows in between are
//! computed by threads that live as long as this phase, and by the backend itself when
//! they have enough to do. What a batch becomes depends on nothing but its rows, and
//! batches are taken back in the order of the table: the threads change no result.
//!
//! Threads rather than parallel workers of PostgreSQL: to read the table takes little of
//! the time, workers would each need a copy of what was learned, and rows would go
//! through files of the sort that one process has no need of.

use std::time::Duration;

use faiss_ivf::{Coding, Crew, FaissError, with_crew};
use ivf_store::Tid;
use pgrx::{check_for_interrupts, pg_guard, pg_sys};

use super::progress::{self, Phase};
use super::sort::ListSort;
use super::train::Training;
use super::workers;
use crate::index::insert::tid_of;
use crate::index::opclass::OpClass;
use crate::index::recall::{NearRows, NearestRows, QueryVectors};
use crate::index::report::OrRaise;
use crate::index::sample::Source;
use crate::index::trained::Lists;

/// Rows of a batch: enough for an efficient matrix product, no more than a cache holds.
const MIN_BATCH_ROWS: usize = 64;
const MAX_BATCH_ROWS: usize = 512;
/// Bytes of the vectors of a batch.
const BATCH_BYTES: usize = 1 << 20;
/// Multiplications for a batch, which takes no interrupts: some tenths of a second.
const BATCH_WORK: usize = 1 << 32;
/// Batches that wait or are finished, for each helper: one that it works at, and one so
/// that it does not have to wait.
const BATCHES_PER_HELPER: usize = 2;
/// How often the backend looks for interrupts while it waits for a batch.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// The least that PostgreSQL lets a sort have.
const MIN_SORT_KILOBYTES: usize = 64;

/// How many rows a build has read and indexed.
pub(super) struct Counts {
    pub read: f64,
    pub indexed: u64,
}

/// Rows of the table, and what becomes of them.
#[derive(Default)]
struct Batch {
    /// As they were read, `(rows, dimensions)`.
    vectors: Vec<f32>,
    tids: Vec<Tid>,
    /// See [`NearRows::find`].
    bounds: Vec<f32>,
    /// As they are compared, `(rows, dimensions)`.
    compared: Vec<f32>,
    lists: Vec<u32>,
    records: Vec<u8>,
    near: NearRows,
    error: Option<FaissError>,
}

/// What it takes to compute a batch, on any thread.
struct Encoder<'a> {
    opclass: &'static OpClass,
    dimensions: usize,
    coding: &'a Coding,
    lists: &'a Lists,
    queries: &'a QueryVectors,
}

impl Encoder<'_> {
    /// Bytes of a batch of so many rows, and of what is on the way to it.
    fn batch_bytes(&self, rows: usize, record_size: usize) -> usize {
        let floats = 2 * self.dimensions + self.coding.code_dim() + self.queries.count();
        rows * (floats * size_of::<f32>() + record_size + size_of::<Tid>())
    }

    fn batch_rows(&self) -> usize {
        let lists = self.lists.squares.len().max(1);
        let by_work = BATCH_WORK / (lists * self.dimensions);
        let by_size = BATCH_BYTES / (self.dimensions * size_of::<f32>());
        by_work.min(by_size).clamp(MIN_BATCH_ROWS, MAX_BATCH_ROWS)
    }

    /// Finds lists and records of the rows of the batch.
    fn encode(&self, batch: &mut Batch) -> Result<(), FaissError> {
        let (opclass, coding) = (self.opclass, self.coding);
        let Batch {
            vectors,
            compared,
            lists,
            records,
            ..
        } = batch;
        compared.clear();
        compared.extend_from_slice(vectors);
        opclass.make_comparable(self.dimensions, compared)?;
        let mapped = coding.map(compared)?;
        lists.clear();
        lists.resize(batch.tids.len(), 0);
        self.lists.assign(&mapped, lists)?;
        records.clear();
        let stored = opclass.stored(vectors, compared);
        let centroid = |row: usize| self.lists.centroid(lists[row]);
        coding.encode(stored, compared, &mapped, centroid, records)?;
        let (dim, bounds) = (self.dimensions, &batch.bounds);
        (batch.near).find(opclass, dim, self.queries, bounds, compared)
    }
}

/// Rows on their way into the sort.
struct Assignment<'a> {
    source: &'a Source,
    crew: &'a Crew<'a, Batch>,
    nearest: &'a mut NearestRows,
    sort: ListSort,
    record_size: usize,
    /// The batch that is being filled.
    batch: Batch,
    batch_rows: usize,
    /// Batches that the backend leaves to its helpers.
    most_pending: usize,
    /// Batches that have their memory and no rows.
    spare: Vec<Batch>,
    indexed: u64,
}

/// Reads the table and sorts its rows by list.
///
/// # Safety
/// The relations of `source` must be open and locked for building the index.
pub(super) unsafe fn assign_rows(source: &Source, training: &mut Training) -> (ListSort, Counts) {
    let record_size = training.layout.record_size();
    let (queries, nearest) = training.held_back.parts();
    let encoder = Encoder {
        opclass: source.opclass,
        dimensions: source.dimensions as usize,
        coding: &training.coding,
        lists: &training.lists,
        queries,
    };
    // SAFETY: the caller's promise.
    let helpers = unsafe { workers::helpers(source.heap) };
    let batch_rows = encoder.batch_rows();
    let most_pending = helpers * BATCHES_PER_HELPER;
    // Besides those there are the one that is being filled and the one that the backend
    // computes.
    let batches = (most_pending + 2) * encoder.batch_bytes(batch_rows, record_size);
    let centroids = size_of_val(training.lists.centroids.as_slice());
    // SAFETY: the sort ends before this build does, which runs in a backend.
    let sort = unsafe { ListSort::begin(record_size, sort_kilobytes(centroids + batches)) };
    let work = |batch: &mut Batch| batch.error = encoder.encode(batch).err();
    progress::begin(Phase::Assigning, 0);
    let (mut sort, counts) = with_crew(helpers, &work, |crew| {
        let mut assignment = Assignment {
            source,
            crew,
            nearest,
            sort,
            record_size,
            batch: Batch::default(),
            batch_rows,
            most_pending,
            spare: Vec::new(),
            indexed: 0,
        };
        // SAFETY: the caller's promise; the callback gets the assignment back.
        let read = unsafe {
            pg_sys::table_index_build_scan(
                source.heap,
                source.index,
                source.info,
                true,
                true,
                Some(assign_row),
                std::ptr::from_mut(&mut assignment).cast(),
                std::ptr::null_mut(),
            )
        };
        assignment.hand_in();
        assignment.take_back(0);
        let counts = Counts {
            read,
            indexed: assignment.indexed,
        };
        (assignment.sort, counts)
    });
    progress::begin(Phase::Sorting, counts.indexed);
    sort.sort();
    progress::set_done(counts.indexed);
    (sort, counts)
}

/// Memory for the sort: what `others` leave of `maintenance_work_mem`.
///
/// # Safety
/// Must run in a backend.
unsafe fn sort_kilobytes(others: usize) -> i32 {
    // SAFETY: a backend reads its own setting.
    let memory = unsafe { pg_sys::maintenance_work_mem } as usize;
    let left = memory.saturating_sub(others.div_ceil(1024));
    left.max(MIN_SORT_KILOBYTES) as i32
}

#[pg_guard]
unsafe extern "C-unwind" fn assign_row(
    _index: pg_sys::Relation,
    tid: pg_sys::ItemPointer,
    values: *mut pg_sys::Datum,
    isnull: *mut bool,
    _is_alive: bool,
    state: *mut std::ffi::c_void,
) {
    // SAFETY: PostgreSQL passes the one column of a row, and the assignment
    // that `assign_rows` gave it.
    unsafe {
        let assignment = &mut *state.cast::<Assignment<'_>>();
        let source = assignment.source;
        let vectors = &mut assignment.batch.vectors;
        if *isnull || !source.opclass.read(*values, source.dimensions, vectors) {
            return;
        }
        assignment.batch.tids.push(tid_of(tid));
        if assignment.batch.tids.len() == assignment.batch_rows {
            assignment.hand_in();
            assignment.take_back(assignment.most_pending);
        }
    }
}

impl Assignment<'_> {
    /// Hands the batch in, and begins another.
    fn hand_in(&mut self) {
        if self.batch.tids.is_empty() {
            return;
        }
        self.nearest.bounds(&mut self.batch.bounds);
        let next = self.spare.pop().unwrap_or_default();
        self.crew.put(std::mem::replace(&mut self.batch, next));
    }

    /// Puts finished batches into the sort, and computes others, until no more than so
    /// many are on their way.
    fn take_back(&mut self, most_pending: usize) {
        loop {
            check_for_interrupts!();
            while let Some(batch) = self.crew.take() {
                self.put(batch);
            }
            if self.crew.pending() <= most_pending {
                return;
            }
            if !self.crew.help() {
                self.crew.wait(POLL_INTERVAL);
            }
        }
    }

    /// Puts the rows of a finished batch into the sort.
    fn put(&mut self, mut batch: Batch) {
        if let Some(error) = batch.error.take() {
            // SAFETY: the index is open.
            unsafe { Err::<(), _>(error).or_raise(self.source.index) };
        }
        let records = batch.records.chunks_exact(self.record_size);
        for ((&list, &tid), record) in batch.lists.iter().zip(&batch.tids).zip(records) {
            self.sort.put(list, tid, record);
        }
        self.nearest.take(&batch.near, &batch.tids, &batch.lists);
        self.indexed += batch.tids.len() as u64;
        batch.vectors.clear();
        batch.tids.clear();
        self.spare.push(batch);
    }
}
