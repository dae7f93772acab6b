// Functions that are always inlined, on the CPU and, for what both share, on CUDA.
#pragma once

#if defined(__CUDACC__)
#define FORCE_INLINE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define FORCE_INLINE inline __attribute__((always_inline))
#else
#define FORCE_INLINE inline
#endif

#if defined(__GNUC__)
#define FORCE_INLINE_LAMBDA __attribute__((always_inline))
#else
#define FORCE_INLINE_LAMBDA
#endif
