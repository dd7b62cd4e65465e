// Kernels for NVIDIA devices of what candle computes in many steps: whole blocks of a
// model's layer in one pass over memory. ops/cuda/mod.rs calls them, and says what shapes
// they take. Sums are of 32-bit floats, whatever the numbers of the tensors are.

#include "attention.cuh"
#include "blocks.cuh"
#include "rows.cuh"

#define NORM(T, NAME, K)                                                                                               \
    extern "C" __global__ void __launch_bounds__(NORM_THREADS) norm_##NAME##_##K(                                      \
        const T *x, const T *residual, const float *parameters, T *out, int n, float epsilon) {                        \
        norm<T, K>(x, residual, parameters, out, n, epsilon);                                                          \
    }
#define FINISH(T, NAME, N)                                                                                             \
    extern "C" __global__ void finish_##NAME##_##N(T *x, const T *bias, const T *residual, unsigned count, unsigned n, \
                                                   int activation) {                                                   \
        finish<T, N>(x, bias, residual, count, n, activation);                                                         \
    }
#define ATTENTION_OF(T, KIND, NAME, D, W)                                                                              \
    extern "C" __global__ void __launch_bounds__(W * 32)                                                               \
        KIND##_##NAME##_##D(const T *qkv, const T *bias, const T *distances, const uint32_t *tiles, T *out,            \
                            int hidden, int head_size, int positions, float scale) {                                   \
        attention<T, D, W>(qkv, bias, distances, tiles, out, hidden, head_size, positions, scale);                     \
    }
// Sequences of a few tokens leave most warps of a larger block without work.
#define ATTENTION(T, NAME, D)                                                                                          \
    ATTENTION_OF(T, attention, NAME, D, 4)                                                                             \
    ATTENTION_OF(T, attention_short, NAME, D, 1)
#define SINGLE(T, NAME, R)                                                                                             \
    extern "C" __global__ void __launch_bounds__(SINGLE_THREADS)                                                       \
        single_##NAME##_##R(const T *queries, int stride, const T *bias, T *keys, T *values, const uint32_t *rows,     \
                            const uint32_t *ends, T *out, int hidden, int head_size, float scale, int append) {        \
        single<T, R>(queries, stride, bias, keys, values, rows, ends, out, hidden, head_size, scale, append);          \
    }
#define DEQUANTIZE(T, NAME, Q, FORMAT)                                                                                 \
    extern "C" __global__ void dequantize_##FORMAT##_##NAME(const uint8_t *blocks, T *out, unsigned groups) {          \
        dequantize<T, Q>(blocks, out, groups);                                                                         \
    }
#define NARROW_BLOCKS(T, NAME, Q, FORMAT, R)                                                                           \
    extern "C" __global__ void __launch_bounds__(NARROW_WARPS * 32)                                                    \
        narrow_##FORMAT##_##NAME##_##R(const T *x, const uint8_t *weight, T *out, int rows, int inputs, int outputs) { \
        narrow_blocks<T, Q, R>(x, weight, out, rows, inputs, outputs);                                                 \
    }
#define FOR_TYPE(T, NAME)                                                                                              \
    NORM(T, NAME, 1)                                                                                                   \
    NORM(T, NAME, 2)                                                                                                   \
    NORM(T, NAME, 4)                                                                                                   \
    NORM(T, NAME, 8)                                                                                                   \
    FINISH(T, NAME, 1)                                                                                                 \
    FINISH(T, NAME, 4)                                                                                                 \
    FINISH(T, NAME, 8)                                                                                                 \
    SINGLE(T, NAME, 1)                                                                                                 \
    SINGLE(T, NAME, 2)                                                                                                 \
    SINGLE(T, NAME, 4)                                                                                                 \
    extern "C" __global__ void pool_##NAME(const T *hidden, const uint32_t *ranges, float *out, int width,             \
                                           int out_width, int mode) {                                                  \
        pool<T>(hidden, ranges, out, width, out_width, mode);                                                          \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(TOKEN_THREADS)                                                        \
        likeliest_##NAME(const T *scores, uint32_t *out, uint32_t n, uint32_t forbidden) {                             \
        likeliest<T>(scores, out, n, forbidden);                                                                       \
    }                                                                                                                  \
    DEQUANTIZE(T, NAME, Q4K, q4k)                                                                                      \
    DEQUANTIZE(T, NAME, Q6K, q6k)
#define NARROW(T, NAME, R)                                                                                             \
    extern "C" __global__ void __launch_bounds__(NARROW_WARPS * 32)                                                    \
        narrow_##NAME##_##R(const T *x, const T *weight, const T *bias, const T *residual, T *out, int rows,           \
                            int inputs, int outputs, int activation) {                                                 \
        narrow<T, R>(x, weight, bias, residual, out, rows, inputs, outputs, activation);                               \
    }
#define FOR_SHORT_TYPE_AND_FORMAT(T, NAME, Q, FORMAT)                                                                  \
    NARROW_BLOCKS(T, NAME, Q, FORMAT, 1)                                                                               \
    NARROW_BLOCKS(T, NAME, Q, FORMAT, 2)                                                                               \
    NARROW_BLOCKS(T, NAME, Q, FORMAT, 4)                                                                               \
    NARROW_BLOCKS(T, NAME, Q, FORMAT, 8)
// The same, and what is computed in short numbers alone.
#define FOR_SHORT_TYPE(T, NAME)                                                                                        \
    FOR_TYPE(T, NAME)                                                                                                  \
    NARROW(T, NAME, 1)                                                                                                 \
    NARROW(T, NAME, 2)                                                                                                 \
    NARROW(T, NAME, 4)                                                                                                 \
    FOR_SHORT_TYPE_AND_FORMAT(T, NAME, Q4K, q4k)                                                                       \
    FOR_SHORT_TYPE_AND_FORMAT(T, NAME, Q6K, q6k)                                                                       \
    ATTENTION(T, NAME, 16)                                                                                             \
    ATTENTION(T, NAME, 32)                                                                                             \
    ATTENTION(T, NAME, 64)                                                                                             \
    ATTENTION(T, NAME, 96)                                                                                             \
    ATTENTION(T, NAME, 128)

FOR_TYPE(float, f32)
FOR_SHORT_TYPE(__half, f16)
FOR_SHORT_TYPE(__nv_bfloat16, bf16)
