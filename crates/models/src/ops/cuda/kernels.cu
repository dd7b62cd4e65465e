// Kernels for NVIDIA devices of what candle computes in many steps: whole blocks of a
// model's layer in one pass over memory. ops/cuda/mod.rs calls them, and says what shapes
// they take. Sums are of 32-bit floats, whatever the numbers of the tensors are.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

namespace {

constexpr unsigned ALL = 0xffffffffu;

// Some neighbouring numbers, loaded and stored at once.
template <typename T, int N> struct alignas(N * sizeof(T)) Pack {
    T x[N];
};

template <typename T, int N> __device__ void load(const T *from, float (&to)[N]) {
    const Pack<T, N> pack = *reinterpret_cast<const Pack<T, N> *>(from);
#pragma unroll
    for (int i = 0; i < N; i++) to[i] = float(pack.x[i]);
}

template <typename T, int N> __device__ void store(T *to, const float (&from)[N]) {
    Pack<T, N> pack;
#pragma unroll
    for (int i = 0; i < N; i++) pack.x[i] = T(from[i]);
    *reinterpret_cast<Pack<T, N> *>(to) = pack;
}

__device__ float sum(float a, float b) { return a + b; }
__device__ float largest(float a, float b) { return fmaxf(a, b); }

// One value for all threads of a block out of one of each. `shared` has a place for each warp.
template <float (*JOIN)(float, float)> __device__ float across_block(float value, float *shared) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    for (int step = 16; step > 0; step /= 2) value = JOIN(value, __shfl_xor_sync(ALL, value, step));
    __syncthreads();
    if (lane == 0) shared[warp] = value;
    __syncthreads();
    value = shared[0];
    for (int i = 1; i < warps; i++) value = JOIN(value, shared[i]);
    return value;
}

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

// ---------------------------------------------------------------- attention within sequences

constexpr int WARPS = 4;
// Queries of a block, 16 for each warp, and keys that it looks at in one turn.
constexpr int TILE = 64;

template <typename T> __device__ uint32_t packed(float a, float b) {
    Pack<T, 2> pack;
    pack.x[0] = T(a);
    pack.x[1] = T(b);
    return *reinterpret_cast<uint32_t *>(&pack);
}

// d += a b for matrices of 16 x 16, 16 x 8 numbers, as the units of a warp do it.
template <typename T> __device__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <> __device__ void multiply<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <> __device__ void multiply<__half>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four matrices of 8 x 8 numbers from shared memory; each lane names a row.
template <typename T> __device__ void matrices(uint32_t (&r)[4], const T *row) {
    const unsigned address = unsigned(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
template <typename T> __device__ void matrices_transposed(uint32_t (&r)[4], const T *row) {
    const unsigned address = unsigned(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// Fills a tile of keys or values, rows of D + 8 numbers so that eight of them lie in different
// banks; what is beyond the sequence or the head is zero.
template <typename T, int D>
__device__ void fill(T *tile, const T *from, const T *bias, int rows, size_t stride, int head_size) {
    for (int i = threadIdx.x; i < TILE * (D / 8); i += WARPS * 32) {
        const int row = i / (D / 8), at = i % (D / 8) * 8;
        float v[8] = {}, b[8];
        if (row < rows && at < head_size) {
            load(from + row * stride + at, v);
            load(bias + at, b);
            for (int e = 0; e < 8; e++) v[e] += b[e];
        }
        store(tile + row * (D + 8) + at, v);
    }
}

// Multi-head attention of 64 queries of one sequence, for one head. `qkv` is (tokens, 3 hidden)
// without its bias, which is (3 hidden); `tiles` has for each block the first token of its
// sequence, the sequence's length and the block's first query in it. `distances` is null or
// (heads, 2 positions - 1): what is added to the score of a key by how far it lies from the
// query. The head size is at most D and a multiple of 8. Softmax as in Milakov and Gimelshein
// 2018: its maximum and sum are corrected from one turn to the next.
template <typename T, int D>
__device__ void attention(const T *qkv, const T *bias, const T *distances, const uint32_t *tiles, T *out, int hidden,
                          int head_size, int positions, float scale) {
    constexpr float LOG2E = 1.4426950408889634f;
    constexpr int ROW = D + 8;
    __shared__ alignas(16) T keys[TILE * ROW];
    __shared__ alignas(16) T values[TILE * ROW];
    __shared__ float near[2 * TILE];
    const int start = tiles[3 * blockIdx.x], length = tiles[3 * blockIdx.x + 1], first = tiles[3 * blockIdx.x + 2];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4 * 2;
    const int head = blockIdx.y * head_size;
    const size_t stride = 3 * size_t(hidden);
    qkv += start * stride + head;
    bias += head;
    const int own = first + warp * 16 + group;

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
    for (int begin = 0; begin < length; begin += TILE) {
        const int here = min(TILE, length - begin);
        __syncthreads();
        fill<T, D>(keys, qkv + hidden + begin * stride, bias + hidden, here, stride, head_size);
        fill<T, D>(values, qkv + 2 * hidden + begin * stride, bias + 2 * hidden, here, stride, head_size);
        if (distances) {
            // The key `i - 63` places after its query within the tiles is at i.
            const int width = 2 * positions - 1;
            const int at = positions - 1 + begin - first - (TILE - 1) + int(threadIdx.x);
            near[threadIdx.x] = at >= 0 && at < width ? float(distances[blockIdx.y * width + at]) * LOG2E : 0.0f;
        }
        __syncthreads();
        if (first + warp * 16 >= length) continue;

        float s[TILE / 8][4];
#pragma unroll
        for (int j = 0; j < TILE / 16; j++) {
            for (int e = 0; e < 4; e++) s[2 * j][e] = s[2 * j + 1][e] = 0;
            if (j * 16 >= here) continue;
#pragma unroll
            for (int k = 0; k < D / 16; k++) {
                uint32_t b[4];
                matrices(b, keys + (j * 16 + lane % 8 + lane / 16 * 8) * ROW + k * 16 + lane / 8 % 2 * 8);
                multiply<T>(s[2 * j], q[k], b[0], b[1]);
                multiply<T>(s[2 * j + 1], q[k], b[2], b[3]);
            }
        }
        float highest[2] = {most[0], most[1]};
#pragma unroll
        for (int t = 0; t < TILE / 8; t++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int key = t * 8 + pair + e % 2, query = warp * 16 + group + e / 2 * 8;
                float score = s[t][e] * (scale * LOG2E);
                if (distances) score += near[key - query + TILE - 1];
                s[t][e] = key < here ? score : -INFINITY;
                highest[e / 2] = fmaxf(highest[e / 2], s[t][e]);
            }
        }
        float correction[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            highest[r] = fmaxf(highest[r], __shfl_xor_sync(ALL, highest[r], 1));
            highest[r] = fmaxf(highest[r], __shfl_xor_sync(ALL, highest[r], 2));
            correction[r] = exp2f(most[r] - highest[r]);
            most[r] = highest[r];
            total[r] *= correction[r];
        }
#pragma unroll
        for (int t = 0; t < TILE / 8; t++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                s[t][e] = exp2f(s[t][e] - most[e / 2]);
                total[e / 2] += s[t][e];
            }
        }
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) o[n][e] *= correction[e / 2];
        }
#pragma unroll
        for (int j = 0; j < TILE / 16; j++) {
            if (j * 16 >= here) continue;
            const uint32_t p[4] = {packed<T>(s[2 * j][0], s[2 * j][1]), packed<T>(s[2 * j][2], s[2 * j][3]),
                                   packed<T>(s[2 * j + 1][0], s[2 * j + 1][1]), packed<T>(s[2 * j + 1][2], s[2 * j + 1][3])};
#pragma unroll
            for (int d = 0; d < D / 16; d++) {
                uint32_t b[4];
                matrices_transposed(b, values + (j * 16 + lane % 8 + lane / 8 % 2 * 8) * ROW + d * 16 + lane / 16 * 8);
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
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            const int at = n * 8 + pair;
            const float v[2] = {o[n][2 * r] / total[r], o[n][2 * r + 1] / total[r]};
            if (at < head_size) store(target + at, v);
        }
    }
}

// ---------------------------------------------------------------- attention of single queries

constexpr int SINGLE_THREADS = 256;
// Lanes that read one row of a head together.
constexpr int LANES = 16;
constexpr int GROUPS = SINGLE_THREADS / LANES;

// Attention of one query to its own rows, for one head. `queries` has rows of `stride` numbers,
// keys and values are (rows, hidden); query i attends to rows[ends[i - 1]..ends[i]]. The head
// size is at most 64 R and a multiple of 4. Shared memory: a number for each row of the query,
// and GROUPS x head size.
template <typename T, int R>
__device__ void single(const T *queries, int stride, const T *keys, const T *values, const uint32_t *rows,
                       const uint32_t *ends, T *out, int hidden, int head_size, float scale) {
    extern __shared__ __align__(16) float scores[];
    __shared__ float shared[SINGLE_THREADS / 32];
    const int query = blockIdx.x, head = blockIdx.y * head_size;
    const int begin = query ? ends[query - 1] : 0, length = ends[query] - begin;
    const int group = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const unsigned mask = 0xffffu << (threadIdx.x & LANES);
    rows += begin;
    float q[R][4];
#pragma unroll
    for (int r = 0; r < R; r++) {
        const int at = r * 64 + lane * 4;
        for (int i = 0; i < 4; i++) q[r][i] = 0;
        if (at < head_size) load(queries + size_t(query) * stride + head + at, q[r]);
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
            v = -INFINITY;
            for (uint32_t t = begin; t < end; t++) v = fmaxf(v, float(column[size_t(t) * width]));
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

// The first of the largest scores of each row, or the largest number there is where one is not
// a number. The token `forbidden` is never chosen.
template <typename T> __device__ void likeliest(const T *scores, uint32_t *out, uint32_t n, uint32_t forbidden) {
    __shared__ float best_scores[SINGLE_THREADS / 32];
    __shared__ uint32_t best_tokens[SINGLE_THREADS / 32];
    const T *row = scores + size_t(blockIdx.x) * n;
    float best = -INFINITY;
    uint32_t token = 0xfffffffeu;
    bool wrong = false;
    for (uint32_t at = threadIdx.x; at < n; at += SINGLE_THREADS) {
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
    for (int warp = 1; warp < SINGLE_THREADS / 32; warp++) {
        if (best_scores[warp] > best || (best_scores[warp] == best && best_tokens[warp] < token)) {
            best = best_scores[warp];
            token = best_tokens[warp];
        }
    }
    // All scores being minus infinity, the first is as likely as any.
    out[blockIdx.x] = wrong ? 0xffffffffu : token == 0xfffffffeu ? 0 : token;
}

} // namespace

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
#define ATTENTION(T, NAME, D)                                                                                          \
    extern "C" __global__ void __launch_bounds__(WARPS * 32)                                                           \
        attention_##NAME##_##D(const T *qkv, const T *bias, const T *distances, const uint32_t *tiles, T *out,         \
                               int hidden, int head_size, int positions, float scale) {                                \
        attention<T, D>(qkv, bias, distances, tiles, out, hidden, head_size, positions, scale);                        \
    }
#define SINGLE(T, NAME, R)                                                                                             \
    extern "C" __global__ void __launch_bounds__(SINGLE_THREADS)                                                       \
        single_##NAME##_##R(const T *queries, int stride, const T *keys, const T *values, const uint32_t *rows,        \
                            const uint32_t *ends, T *out, int hidden, int head_size, float scale) {                    \
        single<T, R>(queries, stride, keys, values, rows, ends, out, hidden, head_size, scale);                        \
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
    extern "C" __global__ void __launch_bounds__(SINGLE_THREADS)                                                       \
        likeliest_##NAME(const T *scores, uint32_t *out, uint32_t n, uint32_t forbidden) {                             \
        likeliest<T>(scores, out, n, forbidden);                                                                       \
    }
#define FOR_SHORT_TYPE(T, NAME)                                                                                        \
    ATTENTION(T, NAME, 16)                                                                                             \
    ATTENTION(T, NAME, 32)                                                                                             \
    ATTENTION(T, NAME, 64)                                                                                             \
    ATTENTION(T, NAME, 96)                                                                                             \
    ATTENTION(T, NAME, 128)

FOR_TYPE(float, f32)
FOR_TYPE(__half, f16)
FOR_TYPE(__nv_bfloat16, bf16)
FOR_SHORT_TYPE(__half, f16)
FOR_SHORT_TYPE(__nv_bfloat16, bf16)
