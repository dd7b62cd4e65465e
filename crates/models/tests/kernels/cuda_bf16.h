// In place of CUDA's header, as cuda_fp16.h.
#pragma once

#include "cuda_fp16.h"

struct __nv_bfloat16 {
    uint16_t bits;
    __nv_bfloat16() = default;
    // To the nearest, of two equally near ones the even.
    __nv_bfloat16(float x) {
        uint32_t whole;
        memcpy(&whole, &x, 4);
        bits = (whole + 0x7fff + (whole >> 16 & 1)) >> 16;
    }
    operator float() const {
        const uint32_t whole = uint32_t(bits) << 16;
        float x;
        memcpy(&x, &whole, 4);
        return x;
    }
};
