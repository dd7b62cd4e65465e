// Numbers of several types, and what warps do with them together.
#pragma once

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

template <typename T> __device__ uint32_t packed(float a, float b) {
    Pack<T, 2> pack;
    pack.x[0] = T(a);
    pack.x[1] = T(b);
    return *reinterpret_cast<uint32_t *>(&pack);
}

// d += a b for matrices of 16 x 16, 16 x 8 numbers, as the units of a warp do it.
template <typename T> __device__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

// tests/kernels imitates these units on a CPU.
#ifdef __CUDACC__
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
#endif

} // namespace
