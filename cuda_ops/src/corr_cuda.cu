// Correlation lookup on CUDA: checks, memory and launches of corr_kernels.cuh.

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "corr_checks.h"
#include "corr_kernels.cuh"

namespace corr {
namespace {

// The tensors of a call, as the kernels read them.
struct Given {
    Window window;
    double scale;
    Tensor fmap1, coords;
    std::vector<Tensor> fmap2;

    int64_t queries() const { return fmap1.size(2) * fmap1.size(3); }
};

Given given(const Tensor& fmap1, TensorList fmap2, const Tensor& coords, int64_t radius,
            double scale, int64_t window_stride, bool sparse) {
    const Window window = check(fmap1, fmap2, coords, radius, window_stride, sparse);
    TORCH_CHECK(fmap2.size() <= MOST_LEVELS, "corr_lookup: at most ", MOST_LEVELS,
                " levels on CUDA, not ", fmap2.size());
    std::vector<Tensor> maps;
    for (const Tensor& fmap : fmap2) maps.push_back(pixel_by_pixel(fmap));
    return {window, scale, pixel_by_pixel(fmap1), coords.contiguous(), maps};
}

template <typename T>
Call<T> call_of(const Given& given) {
    Call<T> call{};
    call.window = given.window;
    call.channels = given.fmap1.size(1);
    call.queries = given.queries();
    call.levels = static_cast<int32_t>(given.fmap2.size());
    call.scale = static_cast<Sum<T>>(given.scale);
    for (int32_t l = 0; l < call.levels; ++l) {
        const Tensor& map = given.fmap2[l];
        call.level[l] = {static_cast<const T*>(map.const_data_ptr()), nullptr,
                         static_cast<int32_t>(map.size(2)), static_cast<int32_t>(map.size(3))};
    }
    call.fmap1 = static_cast<const T*>(given.fmap1.const_data_ptr());
    call.coords = given.coords.const_data_ptr<Sum<T>>();
    return call;
}

// Whether every pixel of every map begins at a multiple of 16 bytes.
bool aligned(const Given& given) {
    bool fits = given.fmap1.size(1) * given.fmap1.element_size() % 16 == 0;
    const auto begins = [](const Tensor& map) {
        return reinterpret_cast<uintptr_t>(map.const_data_ptr()) % 16 == 0;
    };
    for (const Tensor& map : given.fmap2) fits = fits && begins(map);
    return fits && begins(given.fmap1);
}

// Calls visit(Numbers<T, V>) for the maps' type, V the numbers in 16 bytes or 1.
template <typename T, int V>
struct Numbers {
    using type = T;
    static constexpr int width = V;
};

template <typename T, typename Visit>
void with_width(const Given& given, Visit visit) {
    aligned(given) ? visit(Numbers<T, 16 / sizeof(T)>{}) : visit(Numbers<T, 1>{});
}

template <typename Visit>
void with_type(const Given& given, Visit visit) {
    switch (given.fmap1.scalar_type()) {
        case at::kDouble: return with_width<double>(given, visit);
        case at::kHalf: return with_width<__half>(given, visit);
        case at::kBFloat16: return with_width<__nv_bfloat16>(given, visit);
        default: return with_width<float>(given, visit);
    }
}

// Strips of queries, and of each a block for every level and tile, or one for all.
dim3 grid(const Given& given, bool each) {
    const int64_t strips = (given.queries() + QUERIES - 1) / QUERIES * given.fmap1.size(0);
    const int64_t levels = given.fmap2.size(), across = tiles(given.window);
    const int64_t parts = each ? levels * across * across : 1;
    TORCH_CHECK(strips <= 0x7fffffff && parts <= 0xffff, "corr_lookup: too large for CUDA");
    return dim3(static_cast<unsigned>(strips), static_cast<unsigned>(parts));
}

Tensor corr_lookup_cuda(const Tensor& fmap1, TensorList fmap2, const Tensor& coords,
                        int64_t radius, double scale, int64_t window_stride, bool sparse) {
    const Given tensors = given(fmap1, fmap2, coords, radius, scale, window_stride, sparse);
    const c10::cuda::CUDAGuard guard(fmap1.device());
    Tensor output = coords.new_empty(output_sizes(fmap1, fmap2, tensors.window));
    const dim3 blocks = grid(tensors, true);
    if (blocks.x == 0) return output;
    const auto stream = c10::cuda::getCurrentCUDAStream();
    with_type(tensors, [&](auto numbers) {
        using N = decltype(numbers);
        auto call = call_of<typename N::type>(tensors);
        call.output = output.mutable_data_ptr<Sum<typename N::type>>();
        corr_forward<typename N::type, N::width><<<blocks, THREADS, 0, stream>>>(call);
        C10_CUDA_KERNEL_LAUNCH_CHECK();
    });
    return output;
}

Gradients corr_lookup_backward_cuda(const Tensor& grad, const Tensor& fmap1, TensorList fmap2,
                                    const Tensor& coords, int64_t radius, double scale,
                                    int64_t window_stride, bool sparse,
                                    std::array<bool, 3> needs) {
    const Given tensors = given(fmap1, fmap2, coords, radius, scale, window_stride, sparse);
    check_grad(grad, fmap1, fmap2, tensors.window);
    if (needs[1]) at::globalContext().alertNotDeterministic("corr_lookup_backward_cuda");
    const c10::cuda::CUDAGuard guard(fmap1.device());
    const Tensor values = grad.contiguous();
    Tensor grad1 = needs[0] ? empty_like(fmap1, fmap1.scalar_type()) : fmap1.new_empty(0);
    Tensor grad_coords = coords.new_empty(needs[2] ? coords.sizes() : IntArrayRef{0});
    std::vector<Tensor> grad2;
    for (const Tensor& fmap : fmap2) {
        grad2.push_back(needs[1] ? zeros_like(fmap, wide(fmap)) : fmap.new_empty(0));
    }
    const dim3 blocks = grid(tensors, true), strips = grid(tensors, false);
    const auto stream = c10::cuda::getCurrentCUDAStream();
    with_type(tensors, [&](auto numbers) {
        using N = decltype(numbers);
        using T = typename N::type;
        if (blocks.x == 0) return;
        auto call = call_of<T>(tensors);
        call.grad = values.const_data_ptr<Sum<T>>();
        if (needs[0]) call.grad1 = static_cast<T*>(grad1.mutable_data_ptr());
        if (needs[2]) {
            call.grad_coords = grad_coords.mutable_data_ptr<Sum<T>>();
            corr_gather<T, N::width, 3><<<strips, THREADS, 0, stream>>>(call);
            C10_CUDA_KERNEL_LAUNCH_CHECK();
        } else if (needs[0]) {
            corr_gather<T, N::width, 1><<<strips, THREADS, 0, stream>>>(call);
            C10_CUDA_KERNEL_LAUNCH_CHECK();
        }
        if (!needs[1]) return;
        for (int32_t l = 0; l < call.levels; ++l) {
            call.level[l].grad = grad2[l].mutable_data_ptr<Sum<T>>();
        }
        corr_scatter<T, N::width><<<blocks, THREADS, 0, stream>>>(call);
        C10_CUDA_KERNEL_LAUNCH_CHECK();
    });
    for (Tensor& map : grad2) map = map.to(fmap1.scalar_type());
    return {grad1, grad2, grad_coords};
}

}  // namespace

TORCH_LIBRARY_IMPL(cuda_ops, CUDA, m) {
    m.impl("corr_lookup", &corr_lookup_cuda);
    m.impl("corr_lookup_backward", &corr_lookup_backward_cuda);
}

}  // namespace corr
