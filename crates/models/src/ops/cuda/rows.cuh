// What is computed row by row: normalisation, linear layers of few rows and the ends of all of
// them, pooling, the likeliest token.
#pragma once

#include "numbers.cuh"

namespace {

// ---------------------------------------------------------------- layer normalisation

constexpr int NORM_THREADS = 128;

// out = norm(x + bias + residual), a row for each block. `parameters` are (3, n): bias, scale,
// shift. `residual` may be null, `out` may be `x`. n <= 512 K, a multiple of 4.
template <typename T, int K>
__device__ void norm(const T *x, const T *residual, const float *parameters, T *out, int n, float epsilon) {
    __shared__ float shared[NORM_THREADS / 32];
    const size_t row = size_t(blockIdx.x) * n;
    float v[K][4];
    float total = 0;
#pragma unroll
    for (int k = 0; k < K; k++) {
        const int at = (k * NORM_THREADS + threadIdx.x) * 4;
        if (at >= n) continue;
        float other[4];
        load(x + row + at, v[k]);
        load(parameters + at, other);
        for (int i = 0; i < 4; i++) v[k][i] += other[i];
        if (residual) {
            load(residual + row + at, other);
            for (int i = 0; i < 4; i++) v[k][i] += other[i];
        }
        for (int i = 0; i < 4; i++) total += v[k][i];
    }
    const float mean = across_block<sum>(total, shared) / n;
    float squares = 0;
#pragma unroll
    for (int k = 0; k < K; k++) {
        const int at = (k * NORM_THREADS + threadIdx.x) * 4;
        if (at >= n) continue;
        for (int i = 0; i < 4; i++) squares += (v[k][i] - mean) * (v[k][i] - mean);
    }
    const float inverse = rsqrtf(across_block<sum>(squares, shared) / n + epsilon);
#pragma unroll
    for (int k = 0; k < K; k++) {
        const int at = (k * NORM_THREADS + threadIdx.x) * 4;
        if (at >= n) continue;
        float scale[4], shift[4];
        load(parameters + n + at, scale);
        load(parameters + 2 * n + at, shift);
        for (int i = 0; i < 4; i++) v[k][i] = (v[k][i] - mean) * inverse * scale[i] + shift[i];
        store(out + row + at, v[k]);
    }
}

// ---------------------------------------------------------------- the end of a linear layer

// In the order of Activation in activation.rs.
__device__ float activate(float x, int activation) {
    switch (activation) {
    case 0: return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case 1: return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * x * (1.0f + 0.044715f * x * x)));
    case 2: return x / (1.0f + expf(-1.702f * x));
    case 3: return fmaxf(x, 0.0f);
    case 4: return x / (1.0f + expf(-x));
    case 5: return tanhf(x);
    case 6: return 1.0f / (1.0f + expf(-x));
    default: return x;
    }
}

// x = activation(x + bias) + residual in place; x is (count / n, n), `bias` (n), n a multiple
// of N, `residual` like x or null.
template <typename T, int N>
__device__ void finish(T *x, const T *bias, const T *residual, unsigned count, unsigned n, int activation) {
    const unsigned at = (blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (at >= count) return;
    float v[N], other[N];
    load(x + at, v);
    load(bias + at % n, other);
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = activate(v[i] + other[i], activation);
    if (residual) {
        load(residual + at, other);
#pragma unroll
        for (int i = 0; i < N; i++) v[i] += other[i];
    }
    store(x + at, v);
}

// ---------------------------------------------------------------- linear layers of few rows

constexpr int NARROW_WARPS = 8;
// Outputs of a block.
constexpr int NARROW_OUTPUTS = 16;

// What each warp has summed up for a block's outputs, by rows of x.
template <int R> using Sums = float[NARROW_WARPS][NARROW_OUTPUTS][8 * R + 1];

// Leaves the sums of this lane, as the units of its warp have them, where all threads see them.
template <int R> __device__ void keep_sums(const float (&c)[R][4], Sums<R> &sums) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < R; r++) {
#pragma unroll
        for (int e = 0; e < 4; e++) sums[warp][lane / 4 + e / 2 * 8][r * 8 + lane % 4 * 2 + e % 2] = c[r][e];
    }
    __syncthreads();
}

template <int R> __device__ float sum_of_warps(const Sums<R> &sums, int output, int row, float v = 0.0f) {
    for (int warp = 0; warp < NARROW_WARPS; warp++) v += sums[warp][output][row];
    return v;
}

// out = activation(x W^T + bias) + residual for up to 8 R rows: x is (rows, inputs), W (outputs,
// inputs), `bias` (outputs) and `residual` (rows, outputs) may be null. inputs is a multiple of
// 32. The time is that of reading W once: each warp takes every eighth part of 32 inputs.
template <typename T, int R>
__device__ void narrow(const T *x, const T *weight, const T *bias, const T *residual, T *out, int rows, int inputs,
                       int outputs, int activation) {
    __shared__ Sums<R> sums;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quarter = lane % 4 * 8;
    const int first = blockIdx.x * NARROW_OUTPUTS;
    // Beyond the end rows are read twice, and the sums are left out.
    const T *w0 = weight + size_t(min(first + group, outputs - 1)) * inputs + quarter;
    const T *w1 = weight + size_t(min(first + group + 8, outputs - 1)) * inputs + quarter;
    float c[R][4] = {};
#pragma unroll 4
    for (int k = warp * 32; k < inputs; k += NARROW_WARPS * 32) {
        // Eight inputs in a row for each lane: which two units multiply does not matter, as long as it is
        // the same for weights and x.
        const uint4 a0 = *reinterpret_cast<const uint4 *>(w0 + k), a1 = *reinterpret_cast<const uint4 *>(w1 + k);
        const uint32_t low[4] = {a0.x, a1.x, a0.y, a1.y}, high[4] = {a0.z, a1.z, a0.w, a1.w};
#pragma unroll
        for (int r = 0; r < R; r++) {
            const int row = min(r * 8 + group, rows - 1);
            const uint4 b = *reinterpret_cast<const uint4 *>(x + size_t(row) * inputs + quarter + k);
            multiply<T>(c[r], low, b.x, b.y);
            multiply<T>(c[r], high, b.z, b.w);
        }
    }
    keep_sums<R>(c, sums);
    for (int i = threadIdx.x; i < NARROW_OUTPUTS * rows; i += NARROW_WARPS * 32) {
        const int output = first + i % NARROW_OUTPUTS, row = i / NARROW_OUTPUTS;
        if (output >= outputs) continue;
        float v = sum_of_warps<R>(sums, i % NARROW_OUTPUTS, row, bias ? float(bias[output]) : 0.0f);
        v = activate(v, activation);
        const size_t at = size_t(row) * outputs + output;
        out[at] = T(residual ? v + float(residual[at]) : v);
    }
}

// ---------------------------------------------------------------- pooling

// One vector for each text out of those of its tokens: those from ranges[2 i] to ranges[2 i + 1],
// at least one. Modes in the order of PoolingMode in pooling.rs.
template <typename T>
__device__ void pool(const T *hidden, const uint32_t *ranges, float *out, int width, int out_width, int mode) {
    const uint32_t begin = ranges[2 * blockIdx.x], end = ranges[2 * blockIdx.x + 1];
    for (int at = threadIdx.x; at < width; at += blockDim.x) {
        const T *column = hidden + at;
        float v;
        if (mode == 0) {
            v = float(column[size_t(begin) * width]);
        } else if (mode == 4) {
            v = float(column[size_t(end - 1) * width]);
        } else if (mode == 1) {
            // From the first on: where all are NaN, so is the result.
            v = float(column[size_t(begin) * width]);
            for (uint32_t t = begin + 1; t < end; t++) v = fmaxf(v, float(column[size_t(t) * width]));
        } else {
            v = 0;
#pragma unroll 4
            for (uint32_t t = begin; t < end; t++) v += float(column[size_t(t) * width]);
            const float count = float(end - begin);
            v /= mode == 2 ? count : sqrtf(count);
        }
        out[size_t(blockIdx.x) * out_width + at] = v;
    }
}

// ---------------------------------------------------------------- the likeliest token

constexpr int TOKEN_THREADS = 256;

// The first of the largest scores of each row, or the largest number there is where one is not
// a number. The token `forbidden` is never chosen.
template <typename T> __device__ void likeliest(const T *scores, uint32_t *out, uint32_t n, uint32_t forbidden) {
    __shared__ float best_scores[TOKEN_THREADS / 32];
    __shared__ uint32_t best_tokens[TOKEN_THREADS / 32];
    const T *row = scores + size_t(blockIdx.x) * n;
    float best = -INFINITY;
    uint32_t token = 0xfffffffeu;
    bool wrong = false;
    for (uint32_t at = threadIdx.x; at < n; at += TOKEN_THREADS) {
        const float score = float(row[at]);
        wrong |= score != score;
        if (at != forbidden && score > best) {
            best = score;
            token = at;
        }
    }
    for (int step = 16; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(ALL, best, step);
        const uint32_t other_token = __shfl_xor_sync(ALL, token, step);
        if (other > best || (other == best && other_token < token)) {
            best = other;
            token = other_token;
        }
    }
    if (threadIdx.x % 32 == 0) {
        best_scores[threadIdx.x / 32] = best;
        best_tokens[threadIdx.x / 32] = token;
    }
    wrong = __syncthreads_or(wrong);
    if (threadIdx.x) return;
    for (int warp = 1; warp < TOKEN_THREADS / 32; warp++) {
        if (best_scores[warp] > best || (best_scores[warp] == best && best_tokens[warp] < token)) {
            best = best_scores[warp];
            token = best_tokens[warp];
        }
    }
    // All scores being minus infinity, the first is as likely as any.
    out[blockIdx.x] = wrong ? 0xffffffffu : token == 0xfffffffeu ? 0 : token;
}

} // namespace
