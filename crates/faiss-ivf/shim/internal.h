/// What the files of the shim share.

#pragma once

#include "shim.h"

#include <cstdio>
#include <exception>
#include <new>

#include <faiss/utils/distances.h>

/// Runs `work` and turns what it throws into a status and a message.
template <typename Work>
static int guarded(char* message, size_t message_bytes, Work work) noexcept {
    try {
        work();
        return FAISS_IVF_OK;
    } catch (const std::bad_alloc&) {
        return FAISS_IVF_OUT_OF_MEMORY;
    } catch (const std::exception& e) {
        std::snprintf(message, message_bytes, "%s", e.what());
    } catch (...) {
        std::snprintf(message, message_bytes, "unknown exception");
    }
    return FAISS_IVF_FAILED;
}

/// Writes the distances of `query` to `n` contiguous vectors to `out`. Four at a time
/// read the query once, and none waits for the sum of another; sums may differ from those
/// of one at a time by rounding.
static inline void distances_by_four(
        int metric,
        size_t dim,
        const float* query,
        const float* vectors,
        size_t n,
        float* out) noexcept {
    const bool inner = metric == FAISS_IVF_INNER_PRODUCT;
    const auto four = inner ? faiss::fvec_inner_product_batch_4
                            : faiss::fvec_L2sqr_batch_4;
    const auto one = inner ? faiss::fvec_inner_product : faiss::fvec_L2sqr;
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        const float* v = vectors + i * dim;
        four(query,
             v,
             v + dim,
             v + 2 * dim,
             v + 3 * dim,
             dim,
             out[i],
             out[i + 1],
             out[i + 2],
             out[i + 3]);
    }
    for (; i < n; i++) {
        out[i] = one(query, vectors + i * dim, dim);
    }
}
