//! The functions of the C++ shim; `shim/shim.h` says what each expects.

use std::ffi::{c_char, c_int, c_void};

pub(crate) const STATUS_OK: c_int = 0;
pub(crate) const STATUS_OUT_OF_MEMORY: c_int = 1;

pub(crate) const METRIC_INNER_PRODUCT: c_int = 0;
pub(crate) const METRIC_L2: c_int = 1;

pub(crate) const SCALAR_8_BITS: c_int = 0;
pub(crate) const SCALAR_4_BITS: c_int = 1;
pub(crate) const SCALAR_HALF: c_int = 2;

/// A `faiss::Quantizer`.
#[repr(C)]
pub(crate) struct Quantizer {
    _opaque: [u8; 0],
}

/// A query with the decoder of a scalar quantizer.
#[repr(C)]
pub(crate) struct ScalarScorer {
    _opaque: [u8; 0],
}

/// A `faiss::LinearTransform`.
#[repr(C)]
pub(crate) struct Transform {
    _opaque: [u8; 0],
}

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

    pub(crate) fn faiss_ivf_byte_products(
        dim: usize,
        query: *const i16,
        vectors: *const i8,
        n: usize,
        out: *mut i32,
    );

    pub(crate) fn faiss_ivf_code_products(
        dim: usize,
        weights: *const i16,
        codes: *const u8,
        n: usize,
        out: *mut i32,
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

    pub(crate) fn faiss_ivf_all_distances(
        metric: c_int,
        dim: usize,
        queries: *const f32,
        n_queries: usize,
        vectors: *const f32,
        n: usize,
        distances: *mut f32,
        message: *mut c_char,
        message_bytes: usize,
    ) -> c_int;

    pub(crate) fn faiss_ivf_scalar_train(
        kind: c_int,
        dim: usize,
        vectors: *const f32,
        n: usize,
        trained: *mut f32,
        message: *mut c_char,
        message_bytes: usize,
    ) -> c_int;

    pub(crate) fn faiss_ivf_scalar_quantizer_new(
        kind: c_int,
        dim: usize,
        trained: *const f32,
        n_trained: usize,
        quantizer: *mut *mut Quantizer,
        message: *mut c_char,
        message_bytes: usize,
    ) -> c_int;

    pub(crate) fn faiss_ivf_product_quantizer_new(
        dim: usize,
        m: usize,
        bits: usize,
        centroids: *const f32,
        quantizer: *mut *mut Quantizer,
        message: *mut c_char,
        message_bytes: usize,
    ) -> c_int;

    pub(crate) fn faiss_ivf_quantizer_free(quantizer: *mut Quantizer);

    pub(crate) fn faiss_ivf_quantizer_trained(
        quantizer: *const Quantizer,
        trained: *mut *const f32,
        n_trained: *mut usize,
    );

    pub(crate) fn faiss_ivf_quantizer_encode(
        quantizer: *const Quantizer,
        vectors: *const f32,
        n: usize,
        codes: *mut u8,
        message: *mut c_char,
        message_bytes: usize,
    ) -> c_int;

    pub(crate) fn faiss_ivf_quantizer_decode(
        quantizer: *const Quantizer,
        codes: *const u8,
        n: usize,
        vectors: *mut f32,
        message: *mut c_char,
        message_bytes: usize,
    ) -> c_int;

    pub(crate) fn faiss_ivf_scalar_scorer_new(
        quantizer: *const Quantizer,
        query: *const f32,
        scorer: *mut *mut ScalarScorer,
        message: *mut c_char,
        message_bytes: usize,
    ) -> c_int;

    pub(crate) fn faiss_ivf_scalar_scorer_free(scorer: *mut ScalarScorer);

    pub(crate) fn faiss_ivf_scalar_scan(
        scorer: *const ScalarScorer,
        codes: *const u8,
        code_size: usize,
        n: usize,
        out: *mut f32,
        message: *mut c_char,
        message_bytes: usize,
    ) -> c_int;

    pub(crate) fn faiss_ivf_product_tables(
        quantizer: *const Quantizer,
        query: *const f32,
        tables: *mut f32,
        message: *mut c_char,
        message_bytes: usize,
    ) -> c_int;

    pub(crate) fn faiss_ivf_product_scan(
        m: usize,
        tables: *const f32,
        codes: *const u8,
        n: usize,
        out: *mut f32,
        message: *mut c_char,
        message_bytes: usize,
    ) -> c_int;

    pub(crate) fn faiss_ivf_fast_scan(
        n_tables: usize,
        tables: *const u8,
        codes: *const u8,
        n: usize,
        sums: *mut u16,
        message: *mut c_char,
        message_bytes: usize,
    ) -> c_int;

    pub(crate) fn faiss_ivf_transform_new(
        dim_in: usize,
        dim_out: usize,
        matrix: *const f32,
        transform: *mut *mut Transform,
        message: *mut c_char,
        message_bytes: usize,
    ) -> c_int;

    pub(crate) fn faiss_ivf_transform_free(transform: *mut Transform);

    pub(crate) fn faiss_ivf_transform_matrix(transform: *const Transform) -> *const f32;

    pub(crate) fn faiss_ivf_transform_apply(
        transform: *const Transform,
        vectors: *const f32,
        n: usize,
        out: *mut f32,
        message: *mut c_char,
        message_bytes: usize,
    ) -> c_int;

    pub(crate) fn faiss_ivf_principal_components(
        dim: usize,
        dim_out: usize,
        vectors: *const f32,
        n: usize,
        matrix: *mut f32,
        message: *mut c_char,
        message_bytes: usize,
    ) -> c_int;

    pub(crate) fn faiss_ivf_optimized_rotation(
        dim: usize,
        dim_out: usize,
        m: usize,
        vectors: *const f32,
        n: usize,
        index: *mut faiss_sys::FaissIndex,
        matrix: *mut f32,
        message: *mut c_char,
        message_bytes: usize,
    ) -> c_int;
}
