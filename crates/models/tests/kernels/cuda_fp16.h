// In place of CUDA's header: what the kernels use of it, for a CPU. Threads of a block are threads.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>

#define __device__
#define __shared__ static
#define __forceinline__ inline

using std::max;
using std::min;

struct uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct Index {
    int x;
};
extern thread_local Index threadIdx, blockIdx;
extern Index blockDim;
void __syncthreads();

struct __half {
    _Float16 value;
    __half() = default;
    __half(float x) : value(_Float16(x)) {}
    operator float() const { return float(value); }
};
struct __half2 {
    __half x, y;
};
inline float __half2float(__half x) { return x; }
inline float __low2float(__half2 x) { return x.x; }
inline float __high2float(__half2 x) { return x.y; }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }

// Of kernels that are not run here.
template <typename T> T __shfl_xor_sync(unsigned, T, int);
bool __syncthreads_or(bool);
