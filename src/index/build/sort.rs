//! The entries of an index on their way from the order of the table to the
//! order of the lists, through PostgreSQL's external sort.

use ivf_store::Tid;
use pgrx::{pg_sys, vardata_any, varsize_any_exhdr};

const COLUMNS: usize = 3;
const LIST: usize = 0;
const TID: usize = 1;
const CODE: usize = 2;
/// Size of the header of a varlena in memory.
const VARLENA_HEADER: usize = size_of::<i32>();

/// Sorts entries by list.
pub(super) struct ListSort {
    state: *mut pg_sys::Tuplesortstate,
    input: *mut pg_sys::TupleTableSlot,
    output: *mut pg_sys::TupleTableSlot,
    /// A bytea for the code of the entry being put, and the size of a code.
    code: *mut pg_sys::varlena,
    code_size: usize,
}

impl ListSort {
    /// Begins a sort of entries with codes of `code_size` bytes in so much memory.
    ///
    /// # Safety
    /// Must be dropped before the current memory context is.
    pub unsafe fn begin(code_size: usize, kilobytes: i32) -> Self {
        let mut column = (LIST + 1) as pg_sys::AttrNumber;
        let mut operator = pg_sys::Oid::from(pg_sys::Int4LessOperator);
        let mut collation = pg_sys::InvalidOid;
        let mut nulls_first = false;
        #[cfg(feature = "pg14")]
        let options = false;
        #[cfg(not(feature = "pg14"))]
        let options = pg_sys::TUPLESORT_NONE as i32;
        // SAFETY: the descriptor has the three columns; the arrays have the one
        // key that is announced and are copied.
        unsafe {
            let descriptor = pg_sys::CreateTemplateTupleDesc(COLUMNS as i32);
            let types = [pg_sys::INT4OID, pg_sys::INT8OID, pg_sys::BYTEAOID];
            for (number, oid) in (1..).zip(types) {
                pg_sys::TupleDescInitEntry(descriptor, number, std::ptr::null(), oid, -1, 0);
            }
            let state = pg_sys::tuplesort_begin_heap(
                descriptor,
                1,
                &mut column,
                &mut operator,
                &mut collation,
                &mut nulls_first,
                kilobytes,
                std::ptr::null_mut(),
                options,
            );
            Self {
                state,
                input: pg_sys::MakeSingleTupleTableSlot(
                    descriptor,
                    &raw const pg_sys::TTSOpsVirtual,
                ),
                output: pg_sys::MakeSingleTupleTableSlot(
                    descriptor,
                    &raw const pg_sys::TTSOpsMinimalTuple,
                ),
                code: pg_sys::palloc(VARLENA_HEADER + code_size).cast(),
                code_size,
            }
        }
    }

    /// Adds an entry.
    pub fn put(&mut self, list: u32, tid: Tid, code: &[u8]) {
        assert_eq!(code.len(), self.code_size, "codes have one size");
        let row = i64::from(tid.block()) << 16 | i64::from(tid.offset());
        // SAFETY: the slot has three columns; the sort copies what they hold,
        // also the bytea, which has room for a code behind its header.
        unsafe {
            pgrx::set_varsize_4b(self.code, (VARLENA_HEADER + code.len()) as i32);
            let data = self.code.cast::<u8>().add(VARLENA_HEADER);
            data.copy_from_nonoverlapping(code.as_ptr(), code.len());
            pg_sys::ExecClearTuple(self.input);
            let values = (*self.input).tts_values;
            values.add(LIST).write(pg_sys::Datum::from(list as i32));
            values.add(TID).write(pg_sys::Datum::from(row));
            values.add(CODE).write(pg_sys::Datum::from(self.code));
            (*self.input).tts_isnull.write_bytes(0, COLUMNS);
            pg_sys::ExecStoreVirtualTuple(self.input);
            pg_sys::tuplesort_puttupleslot(self.state, self.input);
        }
    }

    /// Ends the input and sorts.
    pub fn sort(&mut self) {
        // SAFETY: the sort is in its input phase.
        unsafe { pg_sys::tuplesort_performsort(self.state) };
    }

    /// Hands the next entry to `take`: its list, its row and its code. Returns
    /// `None` behind the last.
    pub fn next<T>(&mut self, take: impl FnOnce(u32, Tid, &[u8]) -> T) -> Option<T> {
        // SAFETY: the sort is in its output phase; what the slot holds lives
        // until the next call.
        unsafe {
            let has_row = pg_sys::tuplesort_gettupleslot(
                self.state,
                true,
                false,
                self.output,
                std::ptr::null_mut(),
            );
            if !has_row {
                return None;
            }
            pg_sys::slot_getsomeattrs_int(self.output, COLUMNS as i32);
            let values = (*self.output).tts_values;
            let list = (*values.add(LIST)).value() as i32;
            let row = (*values.add(TID)).value() as i64;
            let code = (*values.add(CODE)).cast_mut_ptr::<pg_sys::varlena>();
            let code =
                std::slice::from_raw_parts(vardata_any(code).cast::<u8>(), varsize_any_exhdr(code));
            let tid = Tid::new((row >> 16) as u32, row as u16);
            Some(take(list as u32, tid, code))
        }
    }
}

impl Drop for ListSort {
    fn drop(&mut self) {
        // The abort of the transaction frees memory and files by itself.
        if !std::thread::panicking() {
            // SAFETY: slots, sort and buffer are ours.
            unsafe {
                pg_sys::ExecDropSingleTupleTableSlot(self.input);
                pg_sys::ExecDropSingleTupleTableSlot(self.output);
                pg_sys::tuplesort_end(self.state);
                pg_sys::pfree(self.code.cast());
            }
        }
    }
}
