#include "internal.h"

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <vector>

#include <omp.h>

#include <faiss/IndexFlat.h>
#include <faiss/impl/ScalarQuantizer.h>
#include <faiss/utils/distances.h>

namespace {

/// Multiplications between two polls: some tens of milliseconds of one core.
constexpr size_t BLOCK_WORK = size_t(1) << 31;

/// Fewer points than this in a block make matrix products slow; the upper limit
/// only bounds the buffers.
constexpr size_t MIN_BLOCK_POINTS = 64;
constexpr size_t MAX_BLOCK_POINTS = size_t(1) << 16;

size_t block_points(size_t dim, size_t n_centroids) {
    size_t work_per_point = std::max<size_t>(1, dim * n_centroids);
    return std::clamp(
            BLOCK_WORK / work_per_point, MIN_BLOCK_POINTS, MAX_BLOCK_POINTS);
}

faiss::MetricType metric_type(int metric) {
    return metric == FAISS_IVF_INNER_PRODUCT ? faiss::METRIC_INNER_PRODUCT
                                             : faiss::METRIC_L2;
}

struct Stopped : std::runtime_error {
    Stopped() : std::runtime_error("computation interrupted") {}
};

/// Where all distances of a point overflow, FAISS finds no nearest centroid and
/// leaves the label as it was. Clustering::train counts by labels unchecked, and
/// would never find a cluster to split if it counted too few points. So labels
/// are set before a search, and such a point belongs to the first centroid.
constexpr faiss::idx_t NO_LABEL = -1;

faiss::idx_t valid_label(faiss::idx_t label) {
    return std::max<faiss::idx_t>(label, 0);
}

/// A flat index that polls while it searches.
///
/// faiss::InterruptCallback would be asked between blocks of 4096 points
/// whatever their cost, in some kernels not at all, and is one global object
/// of the process.
struct TrainingIndex : faiss::IndexFlat {
    faiss_ivf_poll poll;
    void* context;
    mutable size_t iterations = 0;

    TrainingIndex(
            faiss::idx_t dim,
            faiss::MetricType metric,
            faiss_ivf_poll poll,
            void* context)
            : IndexFlat(dim, metric), poll(poll), context(context) {}

    void search(
            faiss::idx_t n,
            const float* x,
            faiss::idx_t k,
            float* distances,
            faiss::idx_t* labels,
            const faiss::SearchParameters* params) const override {
        std::fill(labels, labels + n * k, NO_LABEL);
        faiss::idx_t block = block_points(d, ntotal);
        for (faiss::idx_t begin = 0; begin < n; begin += block) {
            stop_if_asked();
            faiss::idx_t size = std::min(block, n - begin);
            IndexFlat::search(
                    size,
                    x + begin * d,
                    k,
                    distances + begin * k,
                    labels + begin * k,
                    params);
        }
        std::transform(labels, labels + n * k, labels, valid_label);
        iterations++;
        stop_if_asked();
    }

    void stop_if_asked() const {
        if (poll(context, iterations) != 0) {
            throw Stopped();
        }
    }
};

} // namespace

int faiss_ivf_set_threads(int threads) {
    int before = omp_get_max_threads();
    omp_set_num_threads(threads);
    return before;
}

int faiss_ivf_training_index_new(
        int metric,
        size_t dim,
        faiss_ivf_poll poll,
        void* context,
        FaissIndex_H** index,
        char* message,
        size_t message_bytes) {
    return guarded(message, message_bytes, [&] {
        auto made = std::make_unique<TrainingIndex>(
                faiss::idx_t(dim), metric_type(metric), poll, context);
        // The C interface of FAISS means a faiss::Index by this pointer.
        faiss::Index* base = made.release();
        *index = reinterpret_cast<FaissIndex_H*>(base);
    });
}

int faiss_ivf_assign(
        int metric,
        size_t dim,
        const float* centroids,
        size_t n_centroids,
        const float* points,
        size_t n_points,
        uint32_t* lists,
        char* message,
        size_t message_bytes) {
    return guarded(message, message_bytes, [&] {
        size_t block = std::min(n_points, block_points(dim, n_centroids));
        std::vector<float> distances(block);
        std::vector<int64_t> labels(block);
        for (size_t begin = 0; begin < n_points; begin += block) {
            size_t size = std::min(block, n_points - begin);
            std::fill(labels.begin(), labels.end(), NO_LABEL);
            auto knn = [&](auto function) {
                function(
                        points + begin * dim,
                        centroids,
                        dim,
                        size,
                        n_centroids,
                        1,
                        distances.data(),
                        labels.data());
            };
            if (metric == FAISS_IVF_INNER_PRODUCT) {
                knn([](auto... args) { faiss::knn_inner_product(args...); });
            } else {
                knn([](auto... args) { faiss::knn_L2sqr(args...); });
            }
            for (size_t i = 0; i < size; i++) {
                lists[begin + i] = uint32_t(valid_label(labels[i]));
            }
        }
    });
}

void faiss_ivf_distances(
        int metric,
        size_t dim,
        const float* query,
        const float* vectors,
        size_t n,
        float* out) {
    if (metric == FAISS_IVF_INNER_PRODUCT) {
        faiss::fvec_inner_products_ny(out, query, vectors, dim, n);
    } else {
        faiss::fvec_L2sqr_ny(out, query, vectors, dim, n);
    }
}

void faiss_ivf_distances_by_four(
        int metric,
        size_t dim,
        const float* query,
        const float* vectors,
        size_t n,
        float* out) {
    distances_by_four(metric, dim, query, vectors, n, out);
}

void faiss_ivf_byte_products(
        size_t dim,
        const int16_t* query,
        const int8_t* vectors,
        size_t n,
        int32_t* out) {
    for (size_t i = 0; i < n; i++, vectors += dim) {
        // Compilers make vector instructions of this form of it.
        int32_t sum = 0;
        for (size_t j = 0; j < dim; j++) {
            sum += int32_t(vectors[j]) * query[j];
        }
        out[i] = sum;
    }
}

int faiss_ivf_half_distances(
        int metric,
        size_t dim,
        const float* query,
        const uint8_t* codes,
        size_t code_size,
        size_t n,
        float* out,
        char* message,
        size_t message_bytes) {
    return guarded(message, message_bytes, [&] {
        faiss::ScalarQuantizer quantizer(
                dim, faiss::ScalarQuantizer::QT_fp16);
        std::unique_ptr<faiss::ScalarQuantizer::SQDistanceComputer> computer(
                quantizer.get_distance_computer(metric_type(metric)));
        computer->set_query(query);
        for (size_t i = 0; i < n; i++) {
            out[i] = computer->query_to_code(codes + i * code_size);
        }
    });
}

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
        size_t message_bytes) {
    return guarded(message, message_bytes, [&] {
        std::fill(rows, rows + n_queries * k, NO_LABEL);
        if (metric == FAISS_IVF_INNER_PRODUCT) {
            faiss::knn_inner_product(
                    queries, vectors, dim, n_queries, n, k, distances, rows);
        } else {
            faiss::knn_L2sqr(
                    queries, vectors, dim, n_queries, n, k, distances, rows);
        }
    });
}
