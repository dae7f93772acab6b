// Numbers in device code: their formats, vectors of 16 bytes, sums that several threads add to.
// T type in memory, S type of the sums, VEC numbers that are read or written at once.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

constexpr int WARP_SIZE = 32;
constexpr unsigned ALL_LANES = 0xffffffff;

__device__ __forceinline__ float widened(float value) { return value; }
__device__ __forceinline__ double widened(double value) { return value; }
__device__ __forceinline__ float widened(__half value) { return __half2float(value); }
__device__ __forceinline__ float widened(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ __forceinline__ void narrowed(float value, float& result) { result = value; }
__device__ __forceinline__ void narrowed(double value, double& result) { result = value; }
__device__ __forceinline__ void narrowed(float value, __half& result) {
    result = __float2half_rn(value);
}
__device__ __forceinline__ void narrowed(float value, __nv_bfloat16& result) {
    result = __float2bfloat16_rn(value);
}

// VEC numbers in one load, from memory that the kernel does not write. A single one without __ldg:
// the compiler would load many ahead of their use, and spill registers.
template <int VEC, typename T, typename S>
__device__ __forceinline__ void load(const T* at, S (&values)[VEC]) {
    T packed[VEC];
    if constexpr (VEC == 1) {
        packed[0] = *at;
    } else {
        static_assert(sizeof(packed) == sizeof(int4));
        const int4 bits = __ldg(reinterpret_cast<const int4*>(at));
        memcpy(packed, &bits, sizeof(bits));
    }
#pragma unroll
    for (int i = 0; i < VEC; ++i) values[i] = widened(packed[i]);
}

template <int VEC, typename T, typename S>
__device__ __forceinline__ void store(T* at, const S (&values)[VEC]) {
    T packed[VEC];
#pragma unroll
    for (int i = 0; i < VEC; ++i) narrowed(values[i], packed[i]);
    if constexpr (VEC == 1) {
        *at = packed[0];
    } else {
        int4 bits;
        memcpy(&bits, packed, sizeof(bits));
        *reinterpret_cast<int4*>(at) = bits;
    }
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define VECTOR_ATOMICS  // four floats at once
#endif

// Adds to memory that other threads add to as well.
template <int VEC, typename S>
__device__ __forceinline__ void add(S* at, const S (&values)[VEC]) {
#ifdef VECTOR_ATOMICS
    if constexpr (VEC % 4 == 0) {
#pragma unroll
        for (int i = 0; i < VEC; i += 4) {
            atomicAdd(reinterpret_cast<float4*>(at + i),
                      make_float4(values[i], values[i + 1], values[i + 2], values[i + 3]));
        }
    } else
#endif
    {
#pragma unroll
        for (int i = 0; i < VEC; ++i) atomicAdd(at + i, values[i]);
    }
}

// The sum over the lanes whose numbers differ in the bits from..below (both powers of two), in all
// of them; every lane of the warp takes part.
template <typename S>
__device__ __forceinline__ S over_lanes(S value, int from, int below) {
#pragma unroll
    for (int step = from; step < below; step *= 2) {
        value += __shfl_xor_sync(ALL_LANES, value, step);
    }
    return value;
}
