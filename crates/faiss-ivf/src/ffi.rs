//! The functions of the C++ shim; `shim/shim.h` says what each expects.

use std::ffi::{c_char, c_int, c_void};

pub(crate) const STATUS_OK: c_int = 0;
pub(crate) const STATUS_OUT_OF_MEMORY: c_int = 1;

pub(crate) const METRIC_INNER_PRODUCT: c_int = 0;
pub(crate) const METRIC_L2: c_int = 1;

/// Called between blocks of work with the number of finished k-means
/// iterations; an answer other than 0 stops the computation.
pub(crate) type Poll = unsafe extern "C" fn(context: *mut c_void, iterations: usize) -> c_int;

unsafe extern "C" {
    pub(crate) fn faiss_ivf_set_threads(threads: c_int) -> c_int;

    pub(crate) fn faiss_ivf_training_index_new(
        metric: c_int,
        dim: usize,
        poll: Poll,
        context: *mut c_void,
        index: *mut *mut faiss_sys::FaissIndex,
        message: *mut c_char,
        message_bytes: usize,
    ) -> c_int;

    pub(crate) fn faiss_ivf_assign(
        metric: c_int,
        dim: usize,
        centroids: *const f32,
        n_centroids: usize,
        points: *const f32,
        n_points: usize,
        lists: *mut u32,
        message: *mut c_char,
        message_bytes: usize,
    ) -> c_int;

    pub(crate) fn faiss_ivf_distances(
        metric: c_int,
        dim: usize,
        query: *const f32,
        vectors: *const f32,
        n: usize,
        out: *mut f32,
    );

    pub(crate) fn faiss_ivf_half_distances(
        metric: c_int,
        dim: usize,
        query: *const f32,
        codes: *const u8,
        code_size: usize,
        n: usize,
        out: *mut f32,
        message: *mut c_char,
        message_bytes: usize,
    ) -> c_int;

    pub(crate) fn faiss_ivf_nearest(
        metric: c_int,
        dim: usize,
        queries: *const f32,
        n_queries: usize,
        vectors: *const f32,
        n: usize,
        k: usize,
        distances: *mut f32,
        rows: *mut i64,
        message: *mut c_char,
        message_bytes: usize,
    ) -> c_int;
}
