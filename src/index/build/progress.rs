//! What `pg_stat_progress_create_index` shows of a build.

use pgrx::{pg_guard, pg_sys};

/// The phases of a build, in order.
#[derive(Debug, Clone, Copy)]
pub(super) enum Phase {
    Sampling = 2,
    Learning = 3,
    Clustering = 4,
    Assigning = 5,
    Sorting = 6,
    Writing = 7,
}

/// Announces that a phase begins, which has `total` rows or iterations to handle, or 0
/// where that is not known; how far the phase before came is no longer shown.
pub(super) fn begin(phase: Phase, total: u64) {
    let (parameters, values): (Vec<i32>, Vec<i64>) = [
        (pg_sys::PROGRESS_CREATEIDX_SUBPHASE, phase as i64),
        (pg_sys::PROGRESS_CREATEIDX_TUPLES_DONE, 0),
        (pg_sys::PROGRESS_CREATEIDX_TUPLES_TOTAL, total as i64),
        (pg_sys::PROGRESS_SCAN_BLOCKS_DONE, 0),
        (pg_sys::PROGRESS_SCAN_BLOCKS_TOTAL, 0),
    ]
    .map(|(parameter, value)| (parameter as i32, value))
    .into_iter()
    .unzip();
    // SAFETY: writes this backend's own progress entry, as many values as told.
    unsafe {
        pg_sys::pgstat_progress_update_multi_param(
            parameters.len() as i32,
            parameters.as_ptr(),
            values.as_ptr(),
        );
    }
}

/// Announces how many rows or iterations the phase has handled.
pub(super) fn set_done(count: u64) {
    let parameter = pg_sys::PROGRESS_CREATEIDX_TUPLES_DONE as i32;
    // SAFETY: writes this backend's own progress entry.
    unsafe { pg_sys::pgstat_progress_update_param(parameter, count as i64) };
}

/// Announces how many blocks of the table the phase has read, and of how many.
pub(super) fn set_blocks(done: u32, total: u32) {
    let parameters = [
        pg_sys::PROGRESS_SCAN_BLOCKS_DONE,
        pg_sys::PROGRESS_SCAN_BLOCKS_TOTAL,
    ];
    let (parameters, values) = (parameters.map(|p| p as i32), [done, total].map(i64::from));
    // SAFETY: writes this backend's own progress entry, as many values as told.
    unsafe {
        pg_sys::pgstat_progress_update_multi_param(
            parameters.len() as i32,
            parameters.as_ptr(),
            values.as_ptr(),
        );
    }
}

#[pg_guard]
pub(in crate::index) unsafe extern "C-unwind" fn ambuildphasename(
    phase: pg_sys::int64,
) -> *mut std::ffi::c_char {
    let name = match phase {
        1 => c"initializing",
        2 => c"sampling rows",
        3 => c"training codes",
        4 => c"clustering sample",
        5 => c"assigning rows",
        6 => c"sorting rows",
        7 => c"writing lists",
        _ => return std::ptr::null_mut(),
    };
    name.as_ptr().cast_mut()
}
