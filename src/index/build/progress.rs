//! What `pg_stat_progress_create_index` shows of a build.

use pgrx::{pg_guard, pg_sys};

/// The phases of a build, in order.
#[derive(Debug, Clone, Copy)]
pub(super) enum Phase {
    Sampling = 2,
    Clustering = 3,
    Assigning = 4,
    Sorting = 5,
    Writing = 6,
}

/// Announces that a phase begins.
pub(super) fn begin(phase: Phase) {
    update(pg_sys::PROGRESS_CREATEIDX_SUBPHASE, phase as i64);
}

/// Announces how many rows the phase will handle.
pub(super) fn set_total(rows: u64) {
    update(pg_sys::PROGRESS_CREATEIDX_TUPLES_DONE, 0);
    update(pg_sys::PROGRESS_CREATEIDX_TUPLES_TOTAL, rows as i64);
}

/// Announces how many rows the phase has handled.
pub(super) fn set_done(rows: u64) {
    update(pg_sys::PROGRESS_CREATEIDX_TUPLES_DONE, rows as i64);
}

fn update(parameter: u32, value: i64) {
    // SAFETY: writes this backend's own progress entry.
    unsafe { pg_sys::pgstat_progress_update_param(parameter as i32, value) };
}

#[pg_guard]
pub(in crate::index) unsafe extern "C-unwind" fn ambuildphasename(
    phase: pg_sys::int64,
) -> *mut std::ffi::c_char {
    let name = match phase {
        1 => c"initializing",
        2 => c"sampling rows",
        3 => c"clustering sample",
        4 => c"assigning rows",
        5 => c"sorting rows",
        6 => c"writing lists",
        _ => return std::ptr::null_mut(),
    };
    name.as_ptr().cast_mut()
}
