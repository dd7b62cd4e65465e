// Attention within sequences, and of single queries to what was computed before.
#pragma once

#include "numbers.cuh"

namespace {

// ---------------------------------------------------------------- attention within sequences

// Copies 16 bytes to shared memory beside other work, or zeros. `from` must be a valid address
// in either case.
__device__ void copy(void *to, const void *from, bool there) {
    const unsigned address = unsigned(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(there ? 16 : 0) : "memory");
}
__device__ void end_of_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// All copies but those after the last end_of_copies have arrived.
__device__ void wait_for_copies() { asm volatile("cp.async.wait_group 1;" ::: "memory"); }

__device__ float power_of_two(float x) {
    asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(x));
    return x;
}

// Begins to fill a tile of keys or values, rows of D + 8 numbers so that eight of them lie in
// different banks; what is beyond the sequence or the head is zero.
template <typename T, int D, int KEYS>
__device__ void fill(T *tile, const T *from, int rows, size_t stride, int head_size) {
    for (int i = threadIdx.x; i < KEYS * (D / 8); i += blockDim.x) {
        const int row = i / (D / 8), at = i % (D / 8) * 8;
        const bool there = row < rows && at < head_size;
        copy(tile + row * (D + 8) + at, there ? from + row * stride + at : from, there);
    }
}

// Multi-head attention of 16 W queries of one sequence, for one head; 16 for each warp. `qkv` is
// (tokens, 3 hidden) without its bias, which is (3 hidden); `tiles` has for each block the first
// token of its sequence, the sequence's length and the block's first query in it. `distances` is
// null or (heads, 2 positions - 1): what is added to the score of a key by how far it lies from
// the query. The head size is at most D and a multiple of 8.
//
// Softmax as in Milakov and Gimelshein 2018: its maximum and sum are corrected from one tile of
// keys to the next. The bias of keys adds the same to all scores of a query, so it changes
// nothing; that of values is added at the end, since weights sum up to 1.
template <typename T, int D, int W>
__device__ void attention(const T *qkv, const T *bias, const T *distances, const uint32_t *tiles, T *out, int hidden,
                          int head_size, int positions, float scale) {
    constexpr float LOG2E = 1.4426950408889634f;
    constexpr int ROW = D + 8, QUERIES = 16 * W, KEYS = D <= 64 && W > 1 ? 64 : 32;
    __shared__ alignas(16) T keys[2][KEYS * ROW];
    __shared__ alignas(16) T values[2][KEYS * ROW];
    __shared__ float near[QUERIES + KEYS];
    const int start = tiles[3 * blockIdx.x], length = tiles[3 * blockIdx.x + 1], first = tiles[3 * blockIdx.x + 2];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4 * 2;
    const int head = blockIdx.y * head_size;
    const size_t stride = 3 * size_t(hidden);
    qkv += start * stride + head;
    bias += head;
    const int own = first + warp * 16 + group;

    fill<T, D, KEYS>(keys[0], qkv + hidden, min(KEYS, length), stride, head_size);
    fill<T, D, KEYS>(values[0], qkv + 2 * hidden, min(KEYS, length), stride, head_size);
    end_of_copies();
    uint32_t q[D / 16][4];
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = own + i % 2 * 8, at = k * 16 + pair + i / 2 * 8;
            q[k][i] = 0;
            if (row < length && at < head_size) {
                float v[2], b[2];
                load(qkv + row * stride + at, v);
                load(bias + at, b);
                q[k][i] = packed<T>(v[0] + b[0], v[1] + b[1]);
            }
        }
    }
    float o[D / 8][4] = {};
    float most[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};
    for (int begin = 0, stage = 0; begin < length; begin += KEYS, stage ^= 1) {
        const int here = min(KEYS, length - begin), next = begin + KEYS;
        // Everyone is done with the tiles before these.
        __syncthreads();
        if (next < length) {
            const T *from = qkv + next * stride;
            fill<T, D, KEYS>(keys[stage ^ 1], from + hidden, min(KEYS, length - next), stride, head_size);
            fill<T, D, KEYS>(values[stage ^ 1], from + 2 * hidden, min(KEYS, length - next), stride, head_size);
        }
        end_of_copies();
        if (distances) {
            // The key that lies i + 1 - QUERIES after its query within the tiles is at i.
            const int width = 2 * positions - 1;
            for (int i = threadIdx.x; i < QUERIES + KEYS; i += 32 * W) {
                const int at = positions - 1 + begin - first - (QUERIES - 1) + i;
                near[i] = at >= 0 && at < width ? float(distances[blockIdx.y * width + at]) * LOG2E : 0.0f;
            }
        }
        wait_for_copies();
        __syncthreads();
        if (first + warp * 16 >= length) continue;

        float s[KEYS / 8][4];
#pragma unroll
        for (int j = 0; j < KEYS / 16; j++) {
            for (int e = 0; e < 4; e++) s[2 * j][e] = s[2 * j + 1][e] = 0;
            if (j * 16 >= here) continue;
#pragma unroll
            for (int k = 0; k < D / 16; k++) {
                uint32_t b[4];
                matrices(b, keys[stage] + (j * 16 + lane % 8 + lane / 16 * 8) * ROW + k * 16 + lane / 8 % 2 * 8);
                multiply<T>(s[2 * j], q[k], b[0], b[1]);
                multiply<T>(s[2 * j + 1], q[k], b[2], b[3]);
            }
        }
        float highest[2] = {most[0], most[1]};
#pragma unroll
        for (int t = 0; t < KEYS / 8; t++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int key = t * 8 + pair + e % 2, query = warp * 16 + group + e / 2 * 8;
                s[t][e] *= scale * LOG2E;
                if (distances) s[t][e] += near[key - query + QUERIES - 1];
                if (here < KEYS && key >= here) s[t][e] = -INFINITY;
                highest[e / 2] = fmaxf(highest[e / 2], s[t][e]);
            }
        }
        float correction[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            highest[r] = fmaxf(highest[r], __shfl_xor_sync(ALL, highest[r], 1));
            highest[r] = fmaxf(highest[r], __shfl_xor_sync(ALL, highest[r], 2));
            correction[r] = power_of_two(most[r] - highest[r]);
            most[r] = highest[r];
            total[r] *= correction[r];
        }
#pragma unroll
        for (int t = 0; t < KEYS / 8; t++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                s[t][e] = power_of_two(s[t][e] - most[e / 2]);
                total[e / 2] += s[t][e];
            }
        }
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) o[n][e] *= correction[e / 2];
        }
#pragma unroll
        for (int j = 0; j < KEYS / 16; j++) {
            if (j * 16 >= here) continue;
            const uint32_t p[4] = {packed<T>(s[2 * j][0], s[2 * j][1]), packed<T>(s[2 * j][2], s[2 * j][3]),
                                   packed<T>(s[2 * j + 1][0], s[2 * j + 1][1]), packed<T>(s[2 * j + 1][2], s[2 * j + 1][3])};
#pragma unroll
            for (int d = 0; d < D / 16; d++) {
                uint32_t b[4];
                matrices_transposed(b, values[stage] + (j * 16 + lane % 8 + lane / 8 % 2 * 8) * ROW + d * 16 + lane / 16 * 8);
                multiply<T>(o[2 * d], p, b[0], b[1]);
                multiply<T>(o[2 * d + 1], p, b[2], b[3]);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        total[r] += __shfl_xor_sync(ALL, total[r], 1);
        total[r] += __shfl_xor_sync(ALL, total[r], 2);
        const int row = own + r * 8;
        if (row >= length) continue;
        T *target = out + size_t(start + row) * hidden + head;
        const float inverse = 1.0f / total[r];
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            const int at = n * 8 + pair;
            if (at >= head_size) continue;
            float v[2];
            load(bias + 2 * hidden + at, v);
            v[0] += o[n][2 * r] * inverse;
            v[1] += o[n][2 * r + 1] * inverse;
            store(target + at, v);
        }
    }
}

// ---------------------------------------------------------------- attention of single queries

// Four numbers with their bias, which may be null.
template <typename T> __device__ void biased(const T *from, const T *bias, float (&to)[4]) {
    load(from, to);
    if (!bias) return;
    float b[4];
    load(bias, b);
    for (int i = 0; i < 4; i++) to[i] += b[i];
}

constexpr int SINGLE_THREADS = 256;
// Lanes that read one row of a head together.
constexpr int LANES = 16;
constexpr int GROUPS = SINGLE_THREADS / LANES;

// Attention of one query to its own rows, for one head. `queries` has rows of `stride` numbers,
// keys and values are (rows, hidden); query i attends to rows[ends[i - 1]..ends[i]]. `bias` is
// added to the queries, unless it is null. With `append` queries and bias have keys and values
// behind them, (queries, 3 hidden): those become the last row of the query, which no other query
// may name: its block might read the row before this one has written it. The head size is at most
// 64 R and a multiple of 4; each query has at least one row. Shared memory: a number for each row
// of the query, and GROUPS x head size.
template <typename T, int R>
__device__ void single(const T *queries, int stride, const T *bias, T *keys, T *values, const uint32_t *rows,
                       const uint32_t *ends, T *out, int hidden, int head_size, float scale, int append) {
    extern __shared__ __align__(16) float scores[];
    __shared__ float shared[SINGLE_THREADS / 32];
    const int query = blockIdx.x, head = blockIdx.y * head_size;
    const int begin = query ? ends[query - 1] : 0, length = ends[query] - begin;
    const int group = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const unsigned mask = 0xffffu << (threadIdx.x & LANES);
    rows += begin;
    queries += size_t(query) * stride + head;
    float q[R][4];
#pragma unroll
    for (int r = 0; r < R; r++) {
        const int at = r * 64 + lane * 4;
        for (int i = 0; i < 4; i++) q[r][i] = 0;
        if (at < head_size) biased(queries + at, bias ? bias + head + at : nullptr, q[r]);
    }
    if (append) {
        const size_t own = size_t(rows[length - 1]) * hidden + head;
#pragma unroll
        for (int r = 0; r < R; r++) {
            const int at = r * 64 + lane * 4;
            if (group > 1 || at >= head_size) continue;
            // The first group writes the key, the second the value.
            const int part = (group + 1) * hidden;
            float v[4];
            biased(queries + part + at, bias + part + head + at, v);
            store((group ? values : keys) + own + at, v);
        }
        __syncthreads();
    }
    float highest = -INFINITY;
#pragma unroll 4
    for (int p = group; p < length; p += GROUPS) {
        const T *key = keys + size_t(rows[p]) * hidden + head;
        float dot = 0;
#pragma unroll
        for (int r = 0; r < R; r++) {
            const int at = r * 64 + lane * 4;
            float k[4] = {};
            if (at < head_size) load(key + at, k);
            for (int i = 0; i < 4; i++) dot += q[r][i] * k[i];
        }
        for (int step = LANES / 2; step > 0; step /= 2) dot += __shfl_xor_sync(mask, dot, step);
        dot *= scale;
        highest = fmaxf(highest, dot);
        if (lane == 0) scores[p] = dot;
    }
    highest = across_block<largest>(highest, shared);
    float total = 0;
    for (int p = threadIdx.x; p < length; p += SINGLE_THREADS) {
        scores[p] = expf(scores[p] - highest);
        total += scores[p];
    }
    total = across_block<sum>(total, shared);
    float o[R][4] = {};
#pragma unroll 4
    for (int p = group; p < length; p += GROUPS) {
        const T *value = values + size_t(rows[p]) * hidden + head;
        const float weight = scores[p];
#pragma unroll
        for (int r = 0; r < R; r++) {
            const int at = r * 64 + lane * 4;
            float v[4] = {};
            if (at < head_size) load(value + at, v);
            for (int i = 0; i < 4; i++) o[r][i] += weight * v[i];
        }
    }
    float *parts = scores + (length + 3) / 4 * 4;
#pragma unroll
    for (int r = 0; r < R; r++) {
        const int at = r * 64 + lane * 4;
        if (at < head_size) store(parts + group * head_size + at, o[r]);
    }
    __syncthreads();
    for (int at = threadIdx.x; at < head_size; at += SINGLE_THREADS) {
        float v = 0;
        for (int g = 0; g < GROUPS; g++) v += parts[g * head_size + at];
        out[size_t(query) * hidden + head + at] = T(v / total);
    }
}

} // namespace
