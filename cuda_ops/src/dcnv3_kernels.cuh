// DCNv3 on CUDA: the device code alone.
//
// A site is one output pixel of one group. `lanes` threads of a warp (1, 2, 4 .. 32) share a site:
// together they find its points' taps and weights, each for some of the points, into shared memory;
// then each walks the points for its own channels, a vector of VEC (16 bytes) at a time.
// Every thread takes part in every barrier and shuffle: sites past the end have no taps.
// T type of the maps, S type of the sums, of offsets and of coordinates. Legend as in dcnv3.h.
#pragma once

#include "dcnv3.h"
#include "numbers.cuh"

namespace dcnv3 {

constexpr int THREADS = 128;  // of a block
// Points that a lane has room for at a time: four lanes have room for 12 points, of which a 3x3
// kernel uses 9.
constexpr int SLOTS = 3;

// Blocks at a time on a multiprocessor: 64 registers for each thread, twice as many where sums take
// eight bytes.
template <typename S>
constexpr int BLOCKS = sizeof(S) == 8 ? 4 : 8;

template <typename T, typename S>
struct Arguments {
    Geometry geometry;
    int32_t lanes;
    const T* input;
    const S* offset;
    const T* mask;
    const T* grad;
    T* output;
    S* grad_input;
    S* grad_offset;
    T* grad_mask;
};

// ---- sites and their points

template <typename T>
struct alignas(16) Four {
    T values[TAPS];
};

// What the lanes of one site know of its points: taps' cells, and either their weights or, for the
// gradients of the points themselves, (fraction y, fraction x, mask).
template <typename S>
struct Points {
    Four<S>* numbers;
    Four<int32_t>* cells;
};

struct Site {
    int32_t lane, row, column, group;
    int64_t points;    // the site's first, among all of mask
    int64_t channels;  // the site's first, among all of output
    int64_t image;     // the group's first channel of the image's first pixel
    bool inside;       // false past the end
};

__device__ __forceinline__ Site find_site(const Geometry& geometry, int32_t lanes, int64_t n) {
    const int32_t columns = geometry.w.size_out;
    const int32_t pixels = geometry.h.size_out * columns;
    const int32_t index = blockIdx.x * (THREADS / lanes) + threadIdx.x / lanes;
    const int32_t pixel = index / geometry.group, group = index % geometry.group;
    const int64_t site = n * pixels * geometry.group + index;
    const int64_t size = int64_t(geometry.h.size) * geometry.w.size;
    return {int32_t(threadIdx.x % lanes),
            pixel / columns,
            pixel % columns,
            group,
            site * geometry.points,
            site * geometry.depth,
            (n * size * geometry.group + group) * geometry.depth,
            pixel < pixels};
}

// Points that a site has room for at a time.
__device__ __forceinline__ int32_t room(int32_t lanes) { return SLOTS * lanes; }

// The part of the block's memory that belongs to this thread's site. Sites lie an odd number of 16
// bytes apart, so that those of a warp are read from different banks.
constexpr int MEMORY = THREADS * SLOTS + THREADS / 2;

template <typename S>
__device__ __forceinline__ Points<S> own(Four<S>* numbers, Four<int32_t>* cells, int32_t lanes) {
    const int32_t first = threadIdx.x / lanes * (room(lanes) | 1);
    return {numbers + first, cells + first};
}

// Writes points first .. first + count of the site, shared out among its lanes.
template <bool WEIGHTS, typename T, typename S>
__device__ __forceinline__ void find_points(const Arguments<T, S>& job, const Site& site,
                                            int32_t first, int32_t count,
                                            const Points<S>& points) {
    const Geometry& geometry = job.geometry;
    const int32_t height = geometry.h.size, width = geometry.w.size;
    const S scale = geometry.offset_scale;
    for (int32_t slot = site.lane; slot < count; slot += job.lanes) {
        Four<int32_t> cells{{-1, -1, -1, -1}};
        Four<S> numbers{};
        if (site.inside) {
            const int64_t k = site.points + first + slot;
            const Reach from = reach(geometry, first + slot);
            const Place<S> y = place<S>(
                centre(geometry.h, site.row) + scale * (from.y + __ldg(job.offset + 2 * k + 1)),
                height);
            const Place<S> x = place<S>(
                centre(geometry.w, site.column) + scale * (from.x + __ldg(job.offset + 2 * k)),
                width);
            const S mask = widened(__ldg(job.mask + k));
            const S below = y.fraction, right = x.fraction;
            cells = {{cell(y.pixel, x.pixel, height, width),
                      cell(y.pixel, x.pixel + 1, height, width),
                      cell(y.pixel + 1, x.pixel, height, width),
                      cell(y.pixel + 1, x.pixel + 1, height, width)}};
            if constexpr (WEIGHTS) {
                numbers = {{mask * (1 - below) * (1 - right), mask * (1 - below) * right,
                            mask * below * (1 - right), mask * below * right}};
            } else {
                numbers = {{below, right, mask, S(0)}};
            }
        }
        points.cells[slot] = cells;
        points.numbers[slot] = numbers;
    }
}

// ---- forward

// output [N, Ho, Wo, C]: the sum over points and taps.
template <typename T, typename S, int VEC>
__global__ void __launch_bounds__(THREADS, BLOCKS<S>) forward_kernel(const Arguments<T, S> job) {
    __shared__ Four<S> numbers[MEMORY];
    __shared__ Four<int32_t> cells[MEMORY];
    const Geometry& geometry = job.geometry;
    const Points<S> points = own(numbers, cells, job.lanes);
    const int64_t channels = int64_t(geometry.group) * geometry.depth;
    for (int64_t n = blockIdx.y; n < geometry.batch; n += gridDim.y) {
        const Site site = find_site(geometry, job.lanes, n);
        for (int32_t start = 0; start < geometry.depth; start += job.lanes * VEC) {
            const int32_t d = start + site.lane * VEC;
            const bool working = site.inside && d < geometry.depth;
            S sum[VEC] = {};
            for (int32_t first = 0; first < geometry.points; first += room(job.lanes)) {
                const int32_t count = min(room(job.lanes), geometry.points - first);
                __syncwarp();
                find_points<true>(job, site, first, count, points);
                __syncwarp();
                for (int32_t slot = 0; working && slot < count; ++slot) {
                    const Four<int32_t> at = points.cells[slot];
                    const Four<S> weights = points.numbers[slot];
#pragma unroll
                    for (int tap = 0; tap < TAPS; ++tap) {
                        if (at.values[tap] < 0) continue;
                        S values[VEC];
                        load(job.input + site.image + at.values[tap] * channels + d, values);
#pragma unroll
                        for (int i = 0; i < VEC; ++i) sum[i] += weights.values[tap] * values[i];
                    }
                }
            }
            if (working) store(job.output + site.channels + d, sum);
        }
    }
}

// ---- gradients of offset and mask

// This lane's part of <grad, tap> for the four taps of a point.
template <int VEC, typename T, typename S>
__device__ __forceinline__ Four<S> multiplied(const Arguments<T, S>& job, const Site& site,
                                              const Four<int32_t>& at) {
    const int64_t channels = int64_t(job.geometry.group) * job.geometry.depth;
    Four<S> products{};
    for (int32_t d = site.lane * VEC; d < job.geometry.depth; d += job.lanes * VEC) {
        if (!site.inside) break;
        S grad[VEC];
        load(job.grad + site.channels + d, grad);
#pragma unroll
        for (int tap = 0; tap < TAPS; ++tap) {
            if (at.values[tap] < 0) continue;
            S values[VEC];
            load(job.input + site.image + at.values[tap] * channels + d, values);
#pragma unroll
            for (int i = 0; i < VEC; ++i) products.values[tap] += grad[i] * values[i];
        }
    }
    return products;
}

// grad_offset [N, Ho, Wo, G, P, 2] and grad_mask [N, Ho, Wo, G, P], each number stored once.
template <typename T, typename S, int VEC>
__global__ void __launch_bounds__(THREADS, BLOCKS<S>)
    backward_points_kernel(const Arguments<T, S> job) {
    __shared__ Four<S> numbers[MEMORY];
    __shared__ Four<int32_t> cells[MEMORY];
    const Geometry& geometry = job.geometry;
    const Points<S> points = own(numbers, cells, job.lanes);
    const S scale = geometry.offset_scale;
    for (int64_t n = blockIdx.y; n < geometry.batch; n += gridDim.y) {
        const Site site = find_site(geometry, job.lanes, n);
        for (int32_t first = 0; first < geometry.points; first += room(job.lanes)) {
            const int32_t count = min(room(job.lanes), geometry.points - first);
            __syncwarp();
            find_points<false>(job, site, first, count, points);
            __syncwarp();
            for (int32_t slot = 0; slot < count; ++slot) {
                const Four<S> tap = multiplied<VEC>(job, site, points.cells[slot]);
                const Four<S> point = points.numbers[slot];
                const S y = point.values[0], x = point.values[1];
                const S upper = tap.values[1] - tap.values[0];
                const S lower = tap.values[3] - tap.values[2];
                const S above = tap.values[0] + x * upper, below = tap.values[2] + x * lower;
                const S grad_mask = over_lanes(above + y * (below - above), 1, job.lanes);
                const S grad_x = over_lanes((1 - y) * upper + y * lower, 1, job.lanes);
                const S grad_y = over_lanes(below - above, 1, job.lanes);
                const S factor = scale * point.values[2];
                __syncwarp();  // all lanes have read the slot
                if (site.lane == 0) {
                    points.numbers[slot] = {{factor * grad_x, factor * grad_y, grad_mask, S(0)}};
                }
            }
            __syncwarp();
            for (int32_t slot = site.lane; site.inside && slot < count; slot += job.lanes) {
                const int64_t k = site.points + first + slot;
                const Four<S> grads = points.numbers[slot];
                job.grad_offset[2 * k] = grads.values[0];
                job.grad_offset[2 * k + 1] = grads.values[1];
                narrowed(grads.values[2], job.grad_mask[k]);
            }
        }
    }
}

// ---- gradient of the input

// grad_input [N, H, W, C], zero before: every site adds to the pixels that it read.
template <typename T, typename S, int VEC>
__global__ void __launch_bounds__(THREADS, BLOCKS<S>)
    backward_input_kernel(const Arguments<T, S> job) {
    __shared__ Four<S> numbers[MEMORY];
    __shared__ Four<int32_t> cells[MEMORY];
    const Geometry& geometry = job.geometry;
    const Points<S> points = own(numbers, cells, job.lanes);
    const int64_t channels = int64_t(geometry.group) * geometry.depth;
    for (int64_t n = blockIdx.y; n < geometry.batch; n += gridDim.y) {
        const Site site = find_site(geometry, job.lanes, n);
        for (int32_t first = 0; first < geometry.points; first += room(job.lanes)) {
            const int32_t count = min(room(job.lanes), geometry.points - first);
            __syncwarp();
            find_points<true>(job, site, first, count, points);
            __syncwarp();
            for (int32_t d = site.lane * VEC; d < geometry.depth; d += job.lanes * VEC) {
                if (!site.inside) break;
                S grad[VEC];
                load(job.grad + site.channels + d, grad);
                for (int32_t slot = 0; slot < count; ++slot) {
                    const Four<int32_t> at = points.cells[slot];
                    const Four<S> weights = points.numbers[slot];
#pragma unroll
                    for (int tap = 0; tap < TAPS; ++tap) {
                        if (at.values[tap] < 0) continue;
                        S share[VEC];
#pragma unroll
                        for (int i = 0; i < VEC; ++i) share[i] = weights.values[tap] * grad[i];
                        add(job.grad_input + site.image + at.values[tap] * channels + d, share);
                    }
                }
            }
        }
    }
}

}  // namespace dcnv3
