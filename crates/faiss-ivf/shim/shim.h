/// The few functions that this crate needs beyond the C interface of FAISS.
///
/// Arguments are checked by the caller. No exception leaves a function; those
/// that can fail return a status and write a message that ends with a zero byte.

#pragma once

#include <cstddef>
#include <cstdint>

enum FaissIvfStatus : int {
    FAISS_IVF_OK = 0,
    FAISS_IVF_OUT_OF_MEMORY = 1,
    FAISS_IVF_FAILED = 2,
};

enum FaissIvfMetric : int {
    FAISS_IVF_INNER_PRODUCT = 0,
    FAISS_IVF_L2 = 1,
};

struct FaissIndex_H;

extern "C" {

/// Sets the size of the OpenMP teams of this thread and returns the old one.
int faiss_ivf_set_threads(int threads);

/// Called between blocks of work on the thread that works; an answer other
/// than 0 stops the work. It must not throw.
typedef int (*faiss_ivf_poll)(void* context, size_t iterations);

/// Makes an IndexFlat for the centroids of a clustering. It searches in blocks
/// of a fraction of a second, polls between them, and counts its searches,
/// which are the iterations. `poll` and `context` must outlive it.
int faiss_ivf_training_index_new(
        int metric,
        size_t dim,
        faiss_ivf_poll poll,
        void* context,
        FaissIndex_H** index,
        char* message,
        size_t message_bytes);

/// Writes the row of the nearest centroid of each point to `lists`.
int faiss_ivf_assign(
        int metric,
        size_t dim,
        const float* centroids,
        size_t n_centroids,
        const float* points,
        size_t n_points,
        uint32_t* lists,
        char* message,
        size_t message_bytes);

/// Writes the distances of `query` to `n` contiguous vectors to `out`. It
/// neither allocates nor throws nor starts a parallel region.
void faiss_ivf_distances(
        int metric,
        size_t dim,
        const float* query,
        const float* vectors,
        size_t n,
        float* out);

/// Writes the distances of `query` to `n` codes of `dim` 16-bit floats, each
/// `code_size` bytes behind the one before and at any address, to `out`.
int faiss_ivf_half_distances(
        int metric,
        size_t dim,
        const float* query,
        const uint8_t* codes,
        size_t code_size,
        size_t n,
        float* out,
        char* message,
        size_t message_bytes);

/// Writes the distances and the rows of the `k` nearest of `n` vectors for each
/// query, nearest first; a row of -1 where there are fewer.
int faiss_ivf_nearest(
        int metric,
        size_t dim,
        const float* queries,
        size_t n_queries,
        const float* vectors,
        size_t n,
        size_t k,
        float* distances,
        int64_t* rows,
        char* message,
        size_t message_bytes);
}
