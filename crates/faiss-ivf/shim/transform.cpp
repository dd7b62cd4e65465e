#include "internal.h"

#include <algorithm>
#include <memory>

#include <faiss/Index.h>
#include <faiss/VectorTransform.h>
#include <faiss/impl/ProductQuantizer.h>
#include <faiss/utils/distances.h>

namespace {

const faiss::LinearTransform* as_faiss(const FaissIvfTransform* transform) {
    return reinterpret_cast<const faiss::LinearTransform*>(transform);
}

} // namespace

int faiss_ivf_transform_new(
        size_t dim_in,
        size_t dim_out,
        const float* matrix,
        FaissIvfTransform** transform,
        char* message,
        size_t message_bytes) {
    return guarded(message, message_bytes, [&] {
        auto made = std::make_unique<faiss::LinearTransform>(
                int(dim_in), int(dim_out), false);
        made->A.assign(matrix, matrix + dim_in * dim_out);
        made->is_trained = true;
        *transform = reinterpret_cast<FaissIvfTransform*>(made.release());
    });
}

void faiss_ivf_transform_free(FaissIvfTransform* transform) {
    delete as_faiss(transform);
}

const float* faiss_ivf_transform_matrix(const FaissIvfTransform* transform) {
    return as_faiss(transform)->A.data();
}

int faiss_ivf_transform_apply(
        const FaissIvfTransform* transform,
        const float* vectors,
        size_t n,
        float* out,
        char* message,
        size_t message_bytes) {
    return guarded(message, message_bytes, [&] {
        const faiss::LinearTransform* map = as_faiss(transform);
        if (n != 1) {
            map->apply_noalloc(faiss::idx_t(n), vectors, out);
            return;
        }
        // For one vector BLAS would copy the matrix before it reads it.
        distances_by_four(
                FAISS_IVF_INNER_PRODUCT,
                map->d_in,
                vectors,
                map->A.data(),
                map->d_out,
                out);
    });
}

int faiss_ivf_principal_components(
        size_t dim,
        size_t dim_out,
        const float* vectors,
        size_t n,
        float* matrix,
        char* message,
        size_t message_bytes) {
    return guarded(message, message_bytes, [&] {
        faiss::PCAMatrix components{int(dim), int(dim_out)};
        components.train(faiss::idx_t(n), vectors);
        std::copy(components.A.begin(), components.A.end(), matrix);
    });
}

int faiss_ivf_optimized_rotation(
        size_t dim,
        size_t dim_out,
        size_t m,
        const float* vectors,
        size_t n,
        FaissIndex_H* index,
        float* matrix,
        char* message,
        size_t message_bytes) {
    return guarded(message, message_bytes, [&] {
        faiss::ProductQuantizer quantizer(dim_out, m, 8);
        // FAISS would warn on the standard error output.
        quantizer.cp.min_points_per_centroid = 1;
        quantizer.assign_index = reinterpret_cast<faiss::Index*>(index);
        faiss::OPQMatrix rotation{int(dim), int(m), int(dim_out)};
        rotation.pq = &quantizer;
        rotation.train(faiss::idx_t(n), vectors);
        std::copy(rotation.A.begin(), rotation.A.end(), matrix);
    });
}
