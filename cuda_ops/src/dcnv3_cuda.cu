// DCNv3 on CUDA: checks and launches of the kernels in dcnv3_kernels.cuh.

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>

#include "dcnv3_checks.h"
#include "dcnv3_kernels.cuh"

namespace dcnv3 {
namespace {

constexpr int64_t VECTOR_BYTES = 16, MOST_ROWS_OF_BLOCKS = 65535;

// Tensors as the kernels want them: contiguous, in a type, on a multiple of 16 bytes.
Tensor prepared(const Tensor& tensor, at::ScalarType type) {
    const Tensor found = tensor.to(type).contiguous();
    const auto address = reinterpret_cast<uintptr_t>(found.const_data_ptr());
    return address % VECTOR_BYTES ? found.clone() : found;
}

at::ScalarType sum_type(const Tensor& input) {
    return input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

template <typename T>
const T* pointer(const Tensor& tensor) {
    return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
T* writable(Tensor& tensor) {
    return static_cast<T*>(tensor.mutable_data_ptr());
}

// Threads that share a site: as many as it has vectors of channels, rounded up to a power of two.
int32_t lanes_of(const Geometry& geometry, int64_t width) {
    int32_t lanes = 1;
    while (lanes < WARP_SIZE && lanes * width < geometry.depth) lanes *= 2;
    return lanes;
}

template <typename T, typename S>
void launch(void (*kernel)(Arguments<T, S>), Arguments<T, S> job, int64_t width) {
    const Geometry& geometry = job.geometry;
    const int64_t sites = int64_t(geometry.h.size_out) * geometry.w.size_out * geometry.group;
    if (geometry.batch == 0 || sites == 0 || geometry.depth == 0) return;
    job.lanes = lanes_of(geometry, width);
    const int64_t per_block = THREADS / job.lanes;
    narrow(sites + per_block);  // counted in 32 bits
    const dim3 blocks((sites + per_block - 1) / per_block,
                      std::min(geometry.batch, MOST_ROWS_OF_BLOCKS));
    kernel<<<blocks, THREADS, 0, c10::cuda::getCurrentCUDAStream()>>>(job);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
}

// Calls run.operator()<VEC>() with vectors of 16 bytes if the channels of a group fill them.
template <typename T, typename Run>
void with_width(const Geometry& geometry, Run run) {
    constexpr int width = VECTOR_BYTES / sizeof(T);
    if (geometry.depth % width == 0) {
        run.template operator()<width>();
    } else {
        run.template operator()<1>();
    }
}

// Calls run.operator()<T, S>(): types of the maps and of the sums.
template <typename Run>
void with_types(at::ScalarType type, Run run) {
    switch (type) {
        case at::kDouble: return run.template operator()<double, double>();
        case at::kFloat: return run.template operator()<float, float>();
        case at::kHalf: return run.template operator()<__half, float>();
        case at::kBFloat16: return run.template operator()<__nv_bfloat16, float>();
        default: TORCH_CHECK(false, "dcnv3: no kernel for ", type);
    }
}

Tensor dcnv3_cuda(const Tensor& input, const Tensor& offset, const Tensor& mask, IntArrayRef kernel,
                  IntArrayRef stride, IntArrayRef pad, IntArrayRef dilation, int64_t group,
                  double offset_scale, bool remove_center) {
    const Geometry geometry = check(input, offset, mask, kernel, stride, pad, dilation, group,
                                    offset_scale, remove_center);
    const c10::cuda::CUDAGuard guard(input.device());
    const at::ScalarType type = input.scalar_type();
    const Tensor maps = prepared(input, type), points = prepared(offset, sum_type(input)),
                 weights = prepared(mask, type);
    Tensor output = maps.new_empty(output_sizes(input, geometry));
    with_types(type, [&]<typename T, typename S>() {
        with_width<T>(geometry, [&]<int VEC>() {
            Arguments<T, S> job{};
            job.geometry = geometry;
            job.input = pointer<T>(maps);
            job.offset = pointer<S>(points);
            job.mask = pointer<T>(weights);
            job.output = writable<T>(output);
            launch(forward_kernel<T, S, VEC>, job, VEC);
        });
    });
    return output;
}

Gradients dcnv3_backward_cuda(const Tensor& grad, const Tensor& input, const Tensor& offset,
                              const Tensor& mask, IntArrayRef kernel, IntArrayRef stride,
                              IntArrayRef pad, IntArrayRef dilation, int64_t group,
                              double offset_scale, bool remove_center, std::array<bool, 3> needs) {
    const Geometry geometry = check(input, offset, mask, kernel, stride, pad, dilation, group,
                                    offset_scale, remove_center);
    check_grad(grad, input, geometry);
    if (needs[0]) {
        at::globalContext().alertNotDeterministic("the gradient of dcnv3's input on CUDA");
    }
    const c10::cuda::CUDAGuard guard(input.device());
    const at::ScalarType type = input.scalar_type(), sums = sum_type(input);
    const Tensor maps = prepared(input, type), points = prepared(offset, sums),
                 weights = prepared(mask, type), grads = prepared(grad, type);
    const bool moves = needs[1] || needs[2];  // both come of the same sums
    const auto sizes = [](const Tensor& tensor, bool wanted) {
        return wanted ? tensor.sizes() : IntArrayRef{0};
    };
    Tensor grad_input = points.new_zeros(sizes(input, needs[0]));
    Tensor grad_offset = points.new_empty(sizes(offset, moves));
    Tensor grad_mask = weights.new_empty(sizes(mask, moves));
    with_types(type, [&]<typename T, typename S>() {
        with_width<T>(geometry, [&]<int VEC>() {
            Arguments<T, S> job{};
            job.geometry = geometry;
            job.input = pointer<T>(maps);
            job.offset = pointer<S>(points);
            job.mask = pointer<T>(weights);
            job.grad = pointer<T>(grads);
            job.grad_input = writable<S>(grad_input);
            job.grad_offset = writable<S>(grad_offset);
            job.grad_mask = writable<T>(grad_mask);
            if (moves) launch(backward_points_kernel<T, S, VEC>, job, VEC);
            if (needs[0]) launch(backward_input_kernel<T, S, VEC>, job, VEC);
        });
    });
    return {grad_input.to(type),
            needs[1] ? grad_offset.to(offset.scalar_type()) : offset.new_empty(0),
            needs[2] ? grad_mask : mask.new_empty(0)};
}

}  // namespace

TORCH_LIBRARY_IMPL(cuda_ops, CUDA, m) {
    m.impl("dcnv3", &dcnv3_cuda);
    m.impl("dcnv3_backward", &dcnv3_backward_cuda);
}

}  // namespace dcnv3
