// Linear layers with weights of 4 and 6 bits, which lie in blocks of 256 inputs as GGML's formats
// Q4_K and Q6_K have them: row after row, a row being its blocks.
#pragma once

#include "rows.cuh"

namespace {

constexpr int BLOCK_INPUTS = 256;
// What the lanes of a group decode together: each sixteen weights, the eight from its `quarter`
// (0, 8, 16 or 24) of the first 32 inputs on, and the eight from there of the second 32.
constexpr int CHUNK_INPUTS = 64;
constexpr int BLOCK_CHUNKS = BLOCK_INPUTS / CHUNK_INPUTS;

// Two bytes from an even address, of which the first is the low one.
__device__ uint32_t two_bytes(const uint8_t *from) { return *reinterpret_cast<const uint16_t *>(from); }

// A block: d and d_min as half numbers, eight scales and eight minima of 6 bits in 12 bytes, and
// the weights, of which a byte has one of the first 32 inputs of a chunk in its low half and one of
// the second in its high half. A weight is d scale q - d_min minimum.
struct Q4K {
    static constexpr int BYTES = 144;

    static __device__ void decode(const uint8_t *block, int chunk, int quarter, float (&first)[8], float (&second)[8]) {
        const __half2 d = *reinterpret_cast<const __half2 *>(block);
        // Those of both halves of the chunk in one number, the first one's in its low byte.
        const uint8_t *packed = block + 4 + 2 * chunk;
        uint32_t scales, minima;
        if (chunk < 2) {
            scales = two_bytes(packed) & 0x3f3f;
            minima = two_bytes(packed + 4) & 0x3f3f;
        } else {
            // Four bits of each in the last third, the upper two beside those of the first chunks.
            const uint32_t low = two_bytes(packed + 4);
            scales = (low & 0x0f0f) | (two_bytes(packed - 4) >> 2 & 0x3030);
            minima = (low >> 4 & 0x0f0f) | (two_bytes(packed) >> 2 & 0x3030);
        }
        const uint2 quants = *reinterpret_cast<const uint2 *>(block + 16 + chunk * 32 + quarter);
        const float d0 = __low2float(d) * float(scales & 0xff), d1 = __low2float(d) * float(scales >> 8);
        const float m0 = __high2float(d) * float(minima & 0xff), m1 = __high2float(d) * float(minima >> 8);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const uint32_t both = (i < 4 ? quants.x : quants.y) >> i % 4 * 8;
            first[i] = d0 * float(both & 15) - m0;
            second[i] = d1 * float(both >> 4 & 15) - m1;
        }
    }
};

// A block: the low four bits of the weights, the high two, sixteen scales of 8 bits with a sign, d
// as a half number. A weight is d scale (q - 32). Blocks begin at even addresses only.
struct Q6K {
    static constexpr int BYTES = 210;

    static __device__ void decode(const uint8_t *block, int chunk, int quarter, float (&first)[8], float (&second)[8]) {
        // Of each half of the block the first chunk has the low halves of the bytes.
        const int half = chunk / 2, upper = chunk % 2;
        const uint8_t *low = block + half * 64 + quarter, *high = block + 128 + half * 32 + quarter;
        const int8_t *scales = reinterpret_cast<const int8_t *>(block + 192 + half * 8 + upper * 4 + quarter / 16);
        const float d = __half2float(*reinterpret_cast<const __half *>(block + 208));
        const float d0 = d * float(scales[0]), d1 = d * float(scales[2]);
#pragma unroll
        for (int i = 0; i < 8; i += 2) {
            const uint32_t low0 = two_bytes(low + i) >> upper * 4 & 0x0f0f;
            const uint32_t low1 = two_bytes(low + 32 + i) >> upper * 4 & 0x0f0f;
            const uint32_t both = two_bytes(high + i) >> upper * 4;
            const uint32_t q0 = low0 | (both & 0x0303) << 4, q1 = low1 | (both >> 2 & 0x0303) << 4;
            first[i] = d0 * (float(q0 & 0xff) - 32.0f);
            first[i + 1] = d0 * (float(q0 >> 8) - 32.0f);
            second[i] = d1 * (float(q1 & 0xff) - 32.0f);
            second[i + 1] = d1 * (float(q1 >> 8) - 32.0f);
        }
    }
};

// All weights as numbers, (outputs, inputs); `groups` is the number of sixteens of them, one a
// thread.
template <typename T, typename Q>
__device__ void dequantize(const uint8_t *blocks, T *out, unsigned groups) {
    const unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= groups) return;
    // Blocks have no gaps between rows: all chunks are one behind the other.
    const unsigned chunk = at / 4;
    const int quarter = at % 4 * 8;
    float first[8], second[8];
    Q::decode(blocks + size_t(chunk / BLOCK_CHUNKS) * Q::BYTES, chunk % BLOCK_CHUNKS, quarter, first, second);
    T *to = out + size_t(chunk) * CHUNK_INPUTS + quarter;
    store(to, first);
    store(to + 32, second);
}

// As `narrow` has the weights of a lane: eight of two outputs each, in short numbers.
template <typename T>
__device__ void fragments(const float (&a)[8], const float (&b)[8], uint32_t (&low)[4], uint32_t (&high)[4]) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        low[2 * i] = packed<T>(a[2 * i], a[2 * i + 1]);
        low[2 * i + 1] = packed<T>(b[2 * i], b[2 * i + 1]);
        high[2 * i] = packed<T>(a[4 + 2 * i], a[5 + 2 * i]);
        high[2 * i + 1] = packed<T>(b[4 + 2 * i], b[5 + 2 * i]);
    }
}

// out = x W^T for up to 8 R rows: x is (rows, inputs), W (outputs, inputs) in blocks. inputs is a
// multiple of 256. The time is that of reading and decoding W once: each warp takes every eighth
// chunk.
template <typename T, typename Q, int R>
__device__ void narrow_blocks(const T *x, const uint8_t *weight, T *out, int rows, int inputs, int outputs) {
    __shared__ Sums<R> sums;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quarter = lane % 4 * 8;
    const int first = blockIdx.x * NARROW_OUTPUTS;
    const size_t row_bytes = size_t(inputs / BLOCK_INPUTS) * Q::BYTES;
    // Beyond the end rows are read twice, and the sums are left out.
    const uint8_t *w0 = weight + min(first + group, outputs - 1) * row_bytes;
    const uint8_t *w1 = weight + min(first + group + 8, outputs - 1) * row_bytes;
    float c[R][4] = {};
    for (int chunk = warp; chunk < inputs / CHUNK_INPUTS; chunk += NARROW_WARPS) {
        const int block = chunk / BLOCK_CHUNKS * Q::BYTES;
        float a[2][8], b[2][8];
        Q::decode(w0 + block, chunk % BLOCK_CHUNKS, quarter, a[0], a[1]);
        Q::decode(w1 + block, chunk % BLOCK_CHUNKS, quarter, b[0], b[1]);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t low[4], high[4];
            fragments<T>(a[half], b[half], low, high);
            const T *inputs_of_half = x + chunk * CHUNK_INPUTS + half * 32 + quarter;
#pragma unroll
            for (int r = 0; r < R; r++) {
                const int row = min(r * 8 + group, rows - 1);
                const uint4 numbers = *reinterpret_cast<const uint4 *>(inputs_of_half + size_t(row) * inputs);
                multiply<T>(c[r], low, numbers.x, numbers.y);
                multiply<T>(c[r], high, numbers.z, numbers.w);
            }
        }
    }
    keep_sums<R>(c, sums);
    for (int i = threadIdx.x; i < NARROW_OUTPUTS * rows; i += NARROW_WARPS * 32) {
        const int output = first + i % NARROW_OUTPUTS, row = i / NARROW_OUTPUTS;
        if (output < outputs) out[size_t(row) * outputs + output] = T(sum_of_warps<R>(sums, i % NARROW_OUTPUTS, row));
    }
}

} // namespace
