//! Exact distances of rows, by their vectors in the table.

use ivf_store::Tid;
use pgrx::pg_sys;

use super::opclass::OpClass;
use super::vacuum::item_pointer;

/// Reads the indexed vectors of single rows, as a snapshot sees them.
///
/// Dropping it gives nothing back: when a transaction is aborted, PostgreSQL gives back
/// pins and memory by itself, and scans are dropped after that.
pub(super) struct RowReader {
    opclass: &'static OpClass,
    dimensions: u32,
    snapshot: pg_sys::Snapshot,
    info: *mut pg_sys::IndexInfo,
    /// For expressions of the index.
    executor: *mut pg_sys::EState,
    fetch: *mut pg_sys::IndexFetchTableData,
    slot: *mut pg_sys::TupleTableSlot,
    /// What one row takes.
    scratch: pg_sys::MemoryContext,
}

impl RowReader {
    /// For the rows of a scan. What it allocates lives in `memory`.
    ///
    /// # Safety
    /// `scan` must be a scan of an index of `opclass`, with its table open, for as long as
    /// this lives.
    pub unsafe fn new(
        scan: pg_sys::IndexScanDesc,
        memory: pg_sys::MemoryContext,
        opclass: &'static OpClass,
        dimensions: u32,
    ) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let before = pg_sys::CurrentMemoryContext;
            pg_sys::CurrentMemoryContext = memory;
            let table = (*scan).heapRelation;
            let executor = pg_sys::CreateExecutorState();
            let slot = pg_sys::table_slot_create(table, std::ptr::null_mut());
            (*per_tuple_context(executor)).ecxt_scantuple = slot;
            let begin = (*(*table).rd_tableam).index_fetch_begin;
            let reader = Self {
                opclass,
                dimensions,
                snapshot: (*scan).xs_snapshot,
                info: pg_sys::BuildIndexInfo((*scan).indexRelation),
                executor,
                fetch: begin.expect("a table can be read by an index")(table),
                slot,
                scratch: pg_sys::AllocSetContextCreateInternal(
                    memory,
                    c"faiss_ivf row".as_ptr(),
                    pg_sys::ALLOCSET_SMALL_MINSIZE as usize,
                    pg_sys::ALLOCSET_SMALL_INITSIZE as usize,
                    pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
                ),
            };
            pg_sys::CurrentMemoryContext = before;
            reader
        }
    }

    /// Appends the vector of a row to `out`, as it was read. Returns false if the
    /// snapshot sees no such row, or one without a vector that is indexed.
    ///
    /// # Safety
    /// The relations must still be open.
    pub unsafe fn read(&mut self, tid: Tid, out: &mut Vec<f32>) -> bool {
        // SAFETY: the caller's promise; what the row takes is freed at the next row.
        unsafe {
            pg_sys::MemoryContextReset(self.scratch);
            let before = pg_sys::CurrentMemoryContext;
            pg_sys::CurrentMemoryContext = self.scratch;
            let found = self.fetch(tid) && self.read_vector(out);
            pg_sys::CurrentMemoryContext = before;
            found
        }
    }

    /// Gives back what it holds.
    ///
    /// # Safety
    /// The relations must still be open.
    pub unsafe fn close(self) {
        // SAFETY: they are ours and given back once.
        unsafe {
            pg_sys::ExecDropSingleTupleTableSlot(self.slot);
            let end = (*(*(*self.fetch).rel).rd_tableam).index_fetch_end;
            end.expect("a table can be read by an index")(self.fetch);
            pg_sys::FreeExecutorState(self.executor);
            pg_sys::MemoryContextDelete(self.scratch);
        }
    }

    unsafe fn fetch(&mut self, tid: Tid) -> bool {
        // SAFETY: the fetch is of this table; places for two answers.
        unsafe {
            let table = (*self.fetch).rel;
            let fetch = (*(*table).rd_tableam).index_fetch_tuple;
            let (mut again, mut all_dead) = (false, false);
            fetch.expect("a table can be read by an index")(
                self.fetch,
                &mut item_pointer(tid),
                self.snapshot,
                self.slot,
                &mut again,
                &mut all_dead,
            )
        }
    }

    unsafe fn read_vector(&mut self, out: &mut Vec<f32>) -> bool {
        const COLUMNS: usize = pg_sys::INDEX_MAX_KEYS as usize;
        let mut values = [pg_sys::Datum::null(); COLUMNS];
        let mut nulls = [true; COLUMNS];
        // SAFETY: the slot has a row of the table; there is room for any index's columns.
        unsafe {
            pg_sys::FormIndexDatum(
                self.info,
                self.slot,
                self.executor,
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
            );
            let found = !nulls[0] && self.opclass.read(values[0], self.dimensions, out);
            pg_sys::MemoryContextReset((*per_tuple_context(self.executor)).ecxt_per_tuple_memory);
            found
        }
    }
}

/// PostgreSQL's `GetPerTupleExprContext`.
///
/// # Safety
/// `executor` must be an executor's state.
unsafe fn per_tuple_context(executor: *mut pg_sys::EState) -> *mut pg_sys::ExprContext {
    // SAFETY: the caller's promise.
    unsafe {
        if (*executor).es_per_tuple_exprcontext.is_null() {
            pg_sys::MakePerTupleExprContext(executor)
        } else {
            (*executor).es_per_tuple_exprcontext
        }
    }
}
