//! How many threads a build may have, and what becomes of them when the backend ends.

use std::sync::atomic::{AtomicBool, Ordering};

use pgrx::{pg_guard, pg_sys};

/// Threads beside that of the backend: as many as another index could have parallel
/// workers, by `max_parallel_maintenance_workers` and the table's `parallel_workers`, but
/// not more than there are processors for.
///
/// # Safety
/// `heap` must be an open table.
pub(super) unsafe fn helpers(heap: pg_sys::Relation) -> usize {
    // SAFETY: a backend reads its own setting.
    let most = unsafe { pg_sys::max_parallel_maintenance_workers };
    // SAFETY: the caller's promise.
    let wanted = unsafe { parallel_workers(heap) }.unwrap_or(most);
    let processors = std::thread::available_parallelism().map_or(1, |count| count.get());
    let workers = usize::try_from(wanted.min(most)).unwrap_or(0);
    let helpers = workers.min(processors - 1);
    if helpers > 0 {
        stop_threads_at_exit();
    }
    helpers
}

/// Lets threads come to an end before the backend exits. A backend that is terminated
/// exits in the middle of what it does, and takes the memory of BLAS with it, while
/// threads may still be at work.
fn stop_threads_at_exit() {
    static IS_REGISTERED: AtomicBool = AtomicBool::new(false);
    if !IS_REGISTERED.swap(true, Ordering::Relaxed) {
        // SAFETY: the function lives as long as the process.
        unsafe { pg_sys::before_shmem_exit(Some(stop_threads), pg_sys::Datum::from(0usize)) };
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn stop_threads(_code: std::ffi::c_int, _argument: pg_sys::Datum) {
    faiss_ivf::stop_threads();
}

/// The table's `parallel_workers`, if it is set.
///
/// # Safety
/// `heap` must be an open table.
unsafe fn parallel_workers(heap: pg_sys::Relation) -> Option<i32> {
    // SAFETY: the caller's promise. Options of a table and of a materialized view, which
    // are all that has such an index, are of this type (PostgreSQL's
    // RelationGetParallelWorkers).
    let workers = unsafe {
        let options = (*heap).rd_options.cast::<pg_sys::StdRdOptions>();
        options.as_ref()?.parallel_workers
    };
    (workers >= 0).then_some(workers)
}
