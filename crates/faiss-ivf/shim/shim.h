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

/// Of the encodings of faiss::ScalarQuantizer, those with a range per dimension
/// and that of 16-bit floats.
enum FaissIvfScalarKind : int {
    FAISS_IVF_SCALAR_8_BITS = 0,
    FAISS_IVF_SCALAR_4_BITS = 1,
    FAISS_IVF_SCALAR_HALF = 2,
};

struct FaissIndex_H;

/// A faiss::Quantizer: how vectors become short codes.
struct FaissIvfQuantizer;

/// One query with the decoder of a scalar quantizer.
struct FaissIvfScalarScorer;

/// A faiss::LinearTransform.
struct FaissIvfTransform;

extern "C" {

/// Sets the size of the OpenMP teams of this thread and returns the old one.
int faiss_ivf_set_threads(int threads);

/// Called between blocks of work on the thread that opened the parallel region,
/// which works too; an answer other than 0 stops the work. It must not throw.
typedef int (*faiss_ivf_poll)(void* context, size_t iterations);

/// Makes an IndexFlat for the centroids of a clustering. It searches in blocks
/// of a fraction of a second, each on one thread of the team, so that the team
/// changes no result; it polls between them, and counts its searches, which are
/// the iterations. `poll` and `context` must outlive it.
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

/// Writes the inner products of `query` with `n` contiguous vectors of `dim` 8-bit
/// numbers to `out`. The caller sees to it that no sum overflows.
void faiss_ivf_byte_products(
        size_t dim,
        const int16_t* query,
        const int8_t* vectors,
        size_t n,
        int32_t* out);

/// Writes the inner products of `weights` with `n` contiguous codes of `dim` bytes to
/// `out`. The caller sees to it that no sum overflows.
void faiss_ivf_code_products(
        size_t dim,
        const int16_t* weights,
        const uint8_t* codes,
        size_t n,
        int32_t* out);

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

/// Writes the distances of all queries to all vectors to `distances`
/// `(n_queries, n)`.
int faiss_ivf_all_distances(
        int metric,
        size_t dim,
        const float* queries,
        size_t n_queries,
        const float* vectors,
        size_t n,
        float* distances,
        char* message,
        size_t message_bytes);

/// Writes the ranges of `n` >= 1 vectors, `dim` least values and `dim` widths, to
/// `trained`.
int faiss_ivf_scalar_train(
        int kind,
        size_t dim,
        const float* vectors,
        size_t n,
        float* trained,
        char* message,
        size_t message_bytes);

/// Makes a scalar quantizer of `n_trained` floats: as `faiss_ivf_scalar_train`
/// wrote them, none for 16-bit floats. It is freed by `faiss_ivf_quantizer_free`.
int faiss_ivf_scalar_quantizer_new(
        int kind,
        size_t dim,
        const float* trained,
        size_t n_trained,
        FaissIvfQuantizer** quantizer,
        char* message,
        size_t message_bytes);

/// Makes a product quantizer of `m` parts of `bits` <= 8 bits from its centroids
/// `(m, 2^bits, dim / m)`. It is freed by `faiss_ivf_quantizer_free`.
int faiss_ivf_product_quantizer_new(
        size_t dim,
        size_t m,
        size_t bits,
        const float* centroids,
        FaissIvfQuantizer** quantizer,
        char* message,
        size_t message_bytes);

void faiss_ivf_quantizer_free(FaissIvfQuantizer* quantizer);

/// Points `trained` to what the quantizer was made of, which it owns.
void faiss_ivf_quantizer_trained(
        const FaissIvfQuantizer* quantizer,
        const float** trained,
        size_t* n_trained);

/// Writes the codes of `n` vectors, one after the other, to `codes`.
int faiss_ivf_quantizer_encode(
        const FaissIvfQuantizer* quantizer,
        const float* vectors,
        size_t n,
        uint8_t* codes,
        char* message,
        size_t message_bytes);

/// Writes the vectors of `n` codes to `vectors`.
int faiss_ivf_quantizer_decode(
        const FaissIvfQuantizer* quantizer,
        const uint8_t* codes,
        size_t n,
        float* vectors,
        char* message,
        size_t message_bytes);

/// Prepares inner products of a query with codes of a scalar quantizer. Both must
/// outlive the scorer, which is freed by `faiss_ivf_scalar_scorer_free`.
int faiss_ivf_scalar_scorer_new(
        const FaissIvfQuantizer* quantizer,
        const float* query,
        FaissIvfScalarScorer** scorer,
        char* message,
        size_t message_bytes);

void faiss_ivf_scalar_scorer_free(FaissIvfScalarScorer* scorer);

/// Writes the inner products with `n` codes of `code_size` bytes at any address
/// to `out`, without an allocation.
int faiss_ivf_scalar_scan(
        const FaissIvfScalarScorer* scorer,
        const uint8_t* codes,
        size_t code_size,
        size_t n,
        float* out,
        char* message,
        size_t message_bytes);

/// Writes the inner products of a query with the centroids of a product quantizer
/// to `tables` `(m, 2^bits)`.
int faiss_ivf_product_tables(
        const FaissIvfQuantizer* quantizer,
        const float* query,
        float* tables,
        char* message,
        size_t message_bytes);

/// Writes to `out` what `tables` `(m, 256)` sum up to for each of `n` codes of `m`
/// bytes at any address, without an allocation.
int faiss_ivf_product_scan(
        size_t m,
        const float* tables,
        const uint8_t* codes,
        size_t n,
        float* out,
        char* message,
        size_t message_bytes);

/// Sums what a look-up table `(n_tables, 16)` says of the 4-bit codes in `n`
/// packed codes, and writes the sums modulo 2^16 to `sums`. `n` is a multiple of
/// 32, `n_tables` is even, and all three addresses are multiples of 32.
int faiss_ivf_fast_scan(
        size_t n_tables,
        const uint8_t* tables,
        const uint8_t* codes,
        size_t n,
        uint16_t* sums,
        char* message,
        size_t message_bytes);

/// Makes `y = A x` of `matrix` `(dim_out, dim_in)`. It is freed by
/// `faiss_ivf_transform_free`.
int faiss_ivf_transform_new(
        size_t dim_in,
        size_t dim_out,
        const float* matrix,
        FaissIvfTransform** transform,
        char* message,
        size_t message_bytes);

void faiss_ivf_transform_free(FaissIvfTransform* transform);

/// The matrix that the transform was made of, which it owns.
const float* faiss_ivf_transform_matrix(const FaissIvfTransform* transform);

/// Writes what becomes of `n` vectors to `out`.
int faiss_ivf_transform_apply(
        const FaissIvfTransform* transform,
        const float* vectors,
        size_t n,
        float* out,
        char* message,
        size_t message_bytes);

/// Writes the first `dim_out` principal components of `n` >= `dim` centred
/// vectors, the largest first, to `matrix` `(dim_out, dim)`.
int faiss_ivf_principal_components(
        size_t dim,
        size_t dim_out,
        const float* vectors,
        size_t n,
        float* matrix,
        char* message,
        size_t message_bytes);

/// Writes a rotation after which a product quantizer of `m` parts of 8 bits loses
/// little of `n` >= 256 vectors to `matrix` `(dim_out, dim)`. `index` is a training
/// index for L2 distances of `dim_out / m` dimensions.
int faiss_ivf_optimized_rotation(
        size_t dim,
        size_t dim_out,
        size_t m,
        const float* vectors,
        size_t n,
        FaissIndex_H* index,
        float* matrix,
        char* message,
        size_t message_bytes);
}
