// What CUDA's compiler gives device code, for g++: the kernels of cuda_ops/src/*_kernels.cuh run
// on the CPU. Threads are fibers; they change places where they wait for each other.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) alignas(bytes)
#define __launch_bounds__(...)
#define __shared__ thread_local  // all in one place, which the runtime finds
#define EMULATOR __attribute__((no_sanitize("thread", "undefined"), noinline))

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) double2 {
    double x, y;
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

using std::max;
using std::min;

namespace emulator {

enum class Access { read, write, atomic };

// Runs a grid; the order in which threads take turns follows from the seed. Returns the first fault
// (a race, a read or write outside the arrays, threads that wait for ever), nullptr without one.
const char* launch(dim3 grid, dim3 block, unsigned seed, const std::function<void()>& kernel);

void touch(const void* address, size_t bytes, Access access);
int lane();
// All living lanes of the mask meet; each receives the bytes of the lane it names.
void meet(unsigned lanes, int source, const void* value, void* received, size_t bytes);

template <class T>
EMULATOR T exchange(unsigned lanes, T value, int source) {
    static_assert(sizeof(T) <= 16);
    T received;
    meet(lanes, source, &value, &received, sizeof(T));
    return received;
}

}  // namespace emulator

void __syncthreads();
void __syncwarp(unsigned lanes = 0xffffffffu);

template <class T>
EMULATOR T __shfl_sync(unsigned lanes, T value, int source, int width = warpSize) {
    int first = emulator::lane() / width * width;
    return emulator::exchange(lanes, value, first + (source & (width - 1)));
}

template <class T>
EMULATOR T __shfl_xor_sync(unsigned lanes, T value, int bits, int width = warpSize) {
    int self = emulator::lane(), source = self ^ bits;
    return emulator::exchange(lanes, value, source / width > self / width ? self : source);
}

template <class T>
EMULATOR T __shfl_down_sync(unsigned lanes, T value, unsigned steps, int width = warpSize) {
    int self = emulator::lane(), source = self + int(steps);
    return emulator::exchange(lanes, value, source / width > self / width ? self : source);
}

template <class T>
EMULATOR T __shfl_up_sync(unsigned lanes, T value, unsigned steps, int width = warpSize) {
    int self = emulator::lane(), source = self - int(steps), first = self / width * width;
    return emulator::exchange(lanes, value, source < first ? self : source);
}

template <class T>
__forceinline__ T __ldg(const T* address) {
    return *address;
}

template <class T>
EMULATOR T atomicAdd(T* address, T value) {
    emulator::touch(address, sizeof(T), emulator::Access::atomic);
    T before = *address;
    *address = before + value;
    return before;
}
