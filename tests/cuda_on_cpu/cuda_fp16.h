// float16 as CUDA's header of this name has it, what the kernels need of it.
#pragma once

#include "device.h"

struct __half {
    uint16_t bits;
};
struct alignas(4) __half2 {
    __half x, y;
};

inline float __half2float(__half value) {
    int exponent = value.bits >> 10 & 31, digits = value.bits & 1023;
    float size = exponent ? std::ldexp(1024.0f + digits, exponent - 25) : std::ldexp(digits, -24);
    if (exponent == 31) size = digits ? NAN : INFINITY;
    return value.bits >> 15 ? -size : size;
}

// To the nearest, halves to even.
inline __half __float2half(float value) {
    uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    float size = std::fabs(value);
    if (std::isnan(value)) return {0x7e00};
    if (size >= 65520.0f) return {uint16_t(sign | 0x7c00)};
    int exponent = size < 0x1p-14f ? -14 : std::ilogb(size);
    int digits = int(std::nearbyint(std::ldexp(size, 10 - exponent)));
    return {uint16_t(sign | (((exponent + 14) << 10) + digits))};
}

inline __half __float2half_rn(float value) { return __float2half(value); }
inline float2 __half22float2(__half2 pair) { return {__half2float(pair.x), __half2float(pair.y)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half(x), __float2half(y)}; }
inline __half2 __float22half2_rn(float2 pair) { return __floats2half2_rn(pair.x, pair.y); }
