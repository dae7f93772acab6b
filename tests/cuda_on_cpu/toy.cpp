// Kernels with known faults: the emulator must find each of them.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace {

// Sums blocks of values by a tree in shared memory, then by shuffles in the first warp.
template <bool Barrier, bool Atomic, bool RightLane>
__global__ void sum(const float* __restrict__ values, float* total, int count) {
    __shared__ float partial[128];
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    partial[threadIdx.x] = at < count ? values[at] : 0.0f;
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half >= warpSize; half /= 2) {
        if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
        if (Barrier) __syncthreads();
    }
    if (threadIdx.x >= warpSize) return;
    float result = partial[threadIdx.x];
    for (int step = warpSize / 2; step > 0; step /= 2)
        result += __shfl_xor_sync(0xffffffffu, result, RightLane ? step : 1);
    if (threadIdx.x != 0) return;
    if (Atomic)
        atomicAdd(total, result);
    else
        *total += result;
}

__global__ void read_beyond(const float* values, float* total, int count) {
    if (threadIdx.x == 0) atomicAdd(total, values[count]);
}

__global__ void leave_early(const float* values, float* total, int count) {
    if (int(threadIdx.x) >= count) return;
    float right = __shfl_down_sync(0xffffffffu, values[threadIdx.x], 1);
    if (threadIdx.x == 0) *total = right;
}

__global__ void wait_apart(const float* values, float* total, int) {
    if (threadIdx.x == 0) __syncthreads();
    float first = __shfl_sync(0xffffffffu, values[0], 0);
    if (threadIdx.x == 0) *total = first;
}

__global__ void load_unaligned(const float* values, float* total, int) {
    if (threadIdx.x == 0) *total = reinterpret_cast<const float4*>(values + 1)->x;
}

__global__ void round_anything(const float* values, float* total, int) {
    if (threadIdx.x == 0) *total = float(int(floorf(values[0] * 1e30f)));
}

__global__ void forget_to_fill(const float* values, float* total, int) {
    __shared__ float kept[32];
    if (threadIdx.x == 0) kept[0] = values[0];
    __syncthreads();
    if (threadIdx.x == 0) *total = kept[0] + kept[1];
}

using Kernel = void (*)(const float*, float*, int);
const Kernel KERNELS[] = {
    sum<true, true, true>, sum<false, true, true>, sum<true, false, true>, sum<true, true, false>,
    read_beyond,           leave_early,            wait_apart,             load_unaligned,
    round_anything,        forget_to_fill,
};

}  // namespace

extern "C" const char* toy(int64_t kernel, const float* values, float* total, int64_t count,
                           int64_t seed) {
    dim3 grid((count + 127) / 128);
    return emulator::launch(grid, 128, seed, [=] { KERNELS[kernel](values, total, count); });
}

extern "C" const char* convert(const float* values, __half* half, float* from_half,
                               __nv_bfloat16* brain, float* from_brain, int64_t count) {
    for (int64_t at = 0; at < count; at++) {
        half[at] = __float2half(values[at]);
        from_half[at] = __half2float(half[at]);
        brain[at] = __float2bfloat16(values[at]);
        from_brain[at] = __bfloat162float(brain[at]);
    }
    return nullptr;
}
