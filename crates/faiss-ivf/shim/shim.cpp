#include "internal.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <memory>
#include <stdexcept>
#include <vector>

#include <omp.h>

#include <faiss/IndexFlat.h>
#include <faiss/impl/ScalarQuantizer.h>
#include <faiss/utils/distances.h>

/// The matrix product of the BLAS that FAISS is linked with.
extern "C" int sgemm_(
        const char* transa,
        const char* transb,
        const int* m,
        const int* n,
        const int* k,
        const float* alpha,
        const float* a,
        const int* lda,
        const float* b,
        const int* ldb,
        const float* beta,
        float* c,
        const int* ldc);

namespace {

/// Multiplications between two polls: some tens of milliseconds of one core.
constexpr size_t BLOCK_WORK = size_t(1) << 30;

/// Fewer points than this in a block make matrix products slow; more would leave
/// threads idle at the end, and gain nothing.
constexpr size_t MIN_BLOCK_POINTS = 64;
constexpr size_t MAX_BLOCK_POINTS = 1024;

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

/// Centroids whose products with a block of points are computed together.
constexpr size_t BLOCK_CENTROIDS = 1024;

/// `products` `(n_points, n_centroids)` of points and centroids.
void multiply(
        size_t dim,
        const float* points,
        size_t n_points,
        const float* centroids,
        size_t n_centroids,
        float factor,
        float* products) {
    // Column-major, as BLAS sees it: the transposed of `centroids` times `points`.
    int rows = int(n_centroids), columns = int(n_points), depth = int(dim);
    float zero = 0;
    sgemm_("Transpose",
           "Not transpose",
           &rows,
           &columns,
           &depth,
           &factor,
           centroids,
           &depth,
           points,
           &depth,
           &zero,
           products,
           &rows);
}

/// The centroid of the largest inner product with each point, NO_LABEL where none is
/// larger than minus infinity. faiss::knn_inner_product looks at one product after the
/// other, which takes a good part of the time of the product itself.
void largest_products(
        size_t dim,
        const float* points,
        size_t n_points,
        const float* centroids,
        size_t n_centroids,
        float* largest,
        int64_t* labels) {
    size_t most = std::min(BLOCK_CENTROIDS, n_centroids);
    std::unique_ptr<float[]> products(new float[n_points * most]);
    std::fill(largest, largest + n_points, -HUGE_VALF);
    std::fill(labels, labels + n_points, NO_LABEL);
    for (size_t begin = 0; begin < n_centroids; begin += most) {
        size_t size = std::min(most, n_centroids - begin);
        multiply(
                dim,
                points,
                n_points,
                centroids + begin * dim,
                size,
                1,
                products.get());
        for (size_t i = 0; i < n_points; i++) {
            const float* row = products.get() + i * size;
            float best = largest[i];
#pragma omp simd reduction(max : best)
            for (size_t j = 0; j < size; j++) {
                best = row[j] > best ? row[j] : best;
            }
            if (best > largest[i]) {
                largest[i] = best;
                labels[i] = begin + (std::find(row, row + size, best) - row);
            }
        }
    }
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
        std::atomic<bool> stopped{false};
        std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic)
        for (faiss::idx_t begin = 0; begin < n; begin += block) {
            // An exception must not leave a parallel region.
            try {
                if (omp_get_thread_num() == 0) {
                    stop_if_asked();
                }
                if (!stopped) {
                    search_block(
                            std::min(block, n - begin),
                            x + begin * d,
                            k,
                            distances + begin * k,
                            labels + begin * k,
                            params);
                }
            } catch (...) {
#pragma omp critical
                failure = std::current_exception();
                stopped = true;
            }
        }
        if (failure) {
            std::rethrow_exception(failure);
        }
        std::transform(labels, labels + n * k, labels, valid_label);
        iterations++;
        stop_if_asked();
    }

    void search_block(
            faiss::idx_t n,
            const float* x,
            faiss::idx_t k,
            float* distances,
            faiss::idx_t* labels,
            const faiss::SearchParameters* params) const {
        if (k == 1 && metric_type == faiss::METRIC_INNER_PRODUCT) {
            largest_products(d, x, n, get_xb(), ntotal, distances, labels);
        } else {
            IndexFlat::search(n, x, k, distances, labels, params);
        }
    }

    void stop_if_asked() const {
        if (poll(context, iterations) != 0) {
            throw Stopped();
        }
    }
};

/// Inner products with `n` vectors of whole numbers of one byte. Compilers make vector
/// instructions of this form of it.
template <typename Byte>
void integer_products(
        size_t dim,
        const int16_t* query,
        const Byte* vectors,
        size_t n,
        int32_t* out) {
    size_t i = 0;
    // The sums of one vector would wait for each other.
    for (; i + 4 <= n; i += 4, vectors += 4 * dim) {
        const Byte *a = vectors, *b = a + dim, *c = b + dim, *d = c + dim;
        int32_t sums[4] = {};
        for (size_t j = 0; j < dim; j++) {
            sums[0] += int32_t(int16_t(a[j])) * query[j];
            sums[1] += int32_t(int16_t(b[j])) * query[j];
            sums[2] += int32_t(int16_t(c[j])) * query[j];
            sums[3] += int32_t(int16_t(d[j])) * query[j];
        }
        std::copy(sums, sums + 4, out + i);
    }
    for (; i < n; i++, vectors += dim) {
        int32_t sum = 0;
        for (size_t j = 0; j < dim; j++) {
            sum += int32_t(int16_t(vectors[j])) * query[j];
        }
        out[i] = sum;
    }
}

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
            const float* x = points + begin * dim;
            if (metric == FAISS_IVF_INNER_PRODUCT) {
                largest_products(
                        dim,
                        x,
                        size,
                        centroids,
                        n_centroids,
                        distances.data(),
                        labels.data());
            } else {
                std::fill(labels.begin(), labels.end(), NO_LABEL);
                faiss::knn_L2sqr(
                        x,
                        centroids,
                        dim,
                        size,
                        n_centroids,
                        1,
                        distances.data(),
                        labels.data());
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
    distances_by_four(metric, dim, query, vectors, n, out);
}

void faiss_ivf_byte_products(
        size_t dim,
        const int16_t* query,
        const int8_t* vectors,
        size_t n,
        int32_t* out) {
    integer_products(dim, query, vectors, n, out);
}

void faiss_ivf_code_products(
        size_t dim,
        const int16_t* weights,
        const uint8_t* codes,
        size_t n,
        int32_t* out) {
    integer_products(dim, weights, codes, n, out);
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

int faiss_ivf_all_distances(
        int metric,
        size_t dim,
        const float* queries,
        size_t n_queries,
        const float* vectors,
        size_t n,
        float* distances,
        char* message,
        size_t message_bytes) {
    return guarded(message, message_bytes, [&] {
        bool is_l2 = metric == FAISS_IVF_L2;
        multiply(
                dim,
                queries,
                n_queries,
                vectors,
                n,
                is_l2 ? -2 : 1,
                distances);
        if (!is_l2) {
            return;
        }
        std::vector<float> squares(n);
        faiss::fvec_norms_L2sqr(squares.data(), vectors, dim, n);
        for (size_t i = 0; i < n_queries; i++) {
            float square = faiss::fvec_norm_L2sqr(queries + i * dim, dim);
            float* of_query = distances + i * n;
            for (size_t j = 0; j < n; j++) {
                // Rounding shall not make a distance negative, but a NaN stays one.
                float distance = square + squares[j] + of_query[j];
                of_query[j] = distance < 0 ? 0 : distance;
            }
        }
    });
}
