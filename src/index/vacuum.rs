use std::collections::BTreeMap;

use ivf_store::{Block, META_BLOCK, Meta, PageStore, Tid, move_insert_block, vacuum_page};
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
use pgrx::{pg_guard, pg_sys};

use super::report::OrRaise;
use super::storage::RelationStore;

/// Removes the entries of dead rows, page by page in the order of the file.
///
/// Pages that are added meanwhile need no visit: what they hold was inserted
/// after the dead rows were collected.
#[pg_guard]
pub(super) unsafe extern "C-unwind" fn ambulkdelete(
    info: *mut pg_sys::IndexVacuumInfo,
    stats: *mut pg_sys::IndexBulkDeleteResult,
    callback: pg_sys::IndexBulkDeleteCallback,
    callback_state: *mut std::ffi::c_void,
) -> *mut pg_sys::IndexBulkDeleteResult {
    // SAFETY: PostgreSQL passes an open index and a callback with its state.
    unsafe {
        let index = (*info).index;
        let store = RelationStore::open_with_strategy(index, (*info).strategy);
        let meta = Meta::read(&store).or_raise(index);
        let layout = meta.layout;
        let Some(callback) = callback else {
            return stats;
        };
        let is_dead = |tid: Tid| {
            let mut pointer = item_pointer(tid);
            // CREATE INDEX CONCURRENTLY collects rows here, which may fail.
            pg_guard_ffi_boundary(|| callback(&mut pointer, callback_state))
        };
        let mut first_with_room: BTreeMap<u32, Block> = BTreeMap::new();
        let (mut live, mut removed) = (0.0, 0.0);
        for block in META_BLOCK + 1..store.block_count() {
            delay_point();
            let page = vacuum_page(&store, layout, block, is_dead).or_raise(index);
            let Some(page) = page else {
                continue;
            };
            live += page.live as f64;
            removed += page.removed as f64;
            if page.removed > 0 {
                first_with_room.entry(page.list).or_insert(page.page);
            }
        }
        for (list, block) in first_with_room {
            move_insert_block(&store, &meta.directory, list, block).or_raise(index);
        }

        let stats = if stats.is_null() {
            pg_sys::palloc0(size_of::<pg_sys::IndexBulkDeleteResult>()).cast()
        } else {
            stats
        };
        let result: &mut pg_sys::IndexBulkDeleteResult = &mut *stats;
        result.estimated_count = false;
        result.num_index_tuples = live;
        result.tuples_removed += removed;
        stats
    }
}

/// Completes the statistics. Without a bulk delete there is nothing to say
/// that pg_class does not know.
#[pg_guard]
pub(super) unsafe extern "C-unwind" fn amvacuumcleanup(
    info: *mut pg_sys::IndexVacuumInfo,
    stats: *mut pg_sys::IndexBulkDeleteResult,
) -> *mut pg_sys::IndexBulkDeleteResult {
    // SAFETY: PostgreSQL passes an open index, and null or what
    // ambulkdelete returned.
    unsafe {
        if let Some(result) = stats.as_mut() {
            result.num_pages = RelationStore::open((*info).index).block_count();
        }
    }
    stats
}

pub(super) fn item_pointer(tid: Tid) -> pg_sys::ItemPointerData {
    let block = tid.block();
    pg_sys::ItemPointerData {
        ip_blkid: pg_sys::BlockIdData {
            bi_hi: (block >> 16) as u16,
            bi_lo: block as u16,
        },
        ip_posid: tid.offset(),
    }
}

/// Sleeps if vacuum runs ahead of its cost limit, and takes interrupts.
fn delay_point() {
    // SAFETY: called by vacuum, which holds no buffer lock here.
    unsafe {
        #[cfg(feature = "pg18")]
        pg_sys::vacuum_delay_point(false);
        #[cfg(not(feature = "pg18"))]
        pg_sys::vacuum_delay_point();
    }
}
