use ivf_store::{Meta, Tid, insert};
use pgrx::{pg_guard, pg_sys};

use super::opclass::OpClass;
use super::report::OrRaise;
use super::storage::RelationStore;
use super::trained::Trained;

/// Adds a row to the list whose centroid is nearest to its vector.
#[expect(clippy::too_many_arguments, reason = "the signature is PostgreSQL's")]
#[pg_guard]
pub(super) unsafe extern "C-unwind" fn aminsert(
    index: pg_sys::Relation,
    values: *mut pg_sys::Datum,
    isnull: *mut bool,
    heap_tid: pg_sys::ItemPointer,
    _heap: pg_sys::Relation,
    _check_unique: pg_sys::IndexUniqueCheck::Type,
    _index_unchanged: bool,
    _index_info: *mut pg_sys::IndexInfo,
) -> bool {
    // SAFETY: PostgreSQL passes an open index with its one column, and a row.
    unsafe {
        if *isnull {
            return false;
        }
        let store = RelationStore::open(index);
        let meta = Meta::read(&store).or_raise(index);
        let opclass = OpClass::of(index);
        let dim = meta.dimensions as usize;
        let mut read = Vec::with_capacity(dim);
        if !opclass.read(*values, meta.dimensions, &mut read) {
            return false;
        }
        let trained = Trained::of(index, &store, &meta);
        let mut vector = read.clone();
        opclass.make_comparable(dim, &mut vector).or_raise(index);
        let mapped = trained.coding.map(&vector).or_raise(index);
        let list = trained.lists.nearest(&mapped).or_raise(index);
        let mut record = Vec::with_capacity(meta.layout.record_size());
        let stored = opclass.stored(&read, &vector);
        let centroid = |_| trained.lists.centroid(list);
        (trained.coding)
            .encode(stored, &vector, &mapped, centroid, &mut record)
            .or_raise(index);
        let writer = pg_sys::MyProcPid.unsigned_abs();
        let store = store.with_recent(&trained.recent);
        insert(&store, &meta, list, tid_of(heap_tid), &record, writer).or_raise(index);
    }
    // Only unique indexes answer otherwise.
    false
}

/// # Safety
/// `pointer` must point to an item pointer.
pub(super) unsafe fn tid_of(pointer: pg_sys::ItemPointer) -> Tid {
    // SAFETY: the caller's promise.
    let pointer = unsafe { &*pointer };
    let block = u32::from(pointer.ip_blkid.bi_hi) << 16 | u32::from(pointer.ip_blkid.bi_lo);
    Tid::new(block, pointer.ip_posid)
}
