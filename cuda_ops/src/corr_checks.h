// What both devices ask of the arguments of the correlation lookup: nothing is read out of bounds.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <array>
#include <limits>
#include <tuple>
#include <vector>

#include "corr.h"

namespace corr {

using at::IntArrayRef;
using at::Tensor;
using at::TensorList;
using Gradients = std::tuple<Tensor, std::vector<Tensor>, Tensor>;

// What products are summed in, and the output's type.
inline at::ScalarType wide(const Tensor& fmap) {
    return fmap.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

inline void check_like(const Tensor& tensor, const Tensor& fmap1, IntArrayRef sizes,
                       at::ScalarType type, const char* name) {
    TORCH_CHECK(tensor.device() == fmap1.device(), "corr_lookup: ", name, " is on ",
                tensor.device(), ", fmap1 on ", fmap1.device());
    TORCH_CHECK(tensor.sizes() == sizes, "corr_lookup: ", name, " is ", tensor.sizes(),
                ", should be ", sizes);
    TORCH_CHECK(tensor.scalar_type() == type, "corr_lookup: ", name, " is ", tensor.scalar_type(),
                ", should be ", type);
}

inline Window check(const Tensor& fmap1, TensorList fmap2, const Tensor& coords, int64_t radius,
                    int64_t window_stride, bool sparse) {
    constexpr int64_t most = std::numeric_limits<int32_t>::max() / 2;  // sums of two still fit
    TORCH_CHECK(fmap1.dim() == 4 && fmap1.size(1) > 0 && !fmap2.empty(),
                "corr_lookup: fmap1 must be [B, C, H, W] and fmap2 a list of maps");
    TORCH_CHECK(radius >= 0 && radius < 1 << 10 && window_stride > 0 && window_stride < 1 << 15,
                "corr_lookup: radius ", radius, " or window_stride ", window_stride,
                " is out of range");
    const auto type = fmap1.scalar_type();
    TORCH_CHECK(type == at::kHalf || type == at::kBFloat16 || type == at::kFloat ||
                    type == at::kDouble,
                "corr_lookup: no kernel for ", type);
    const int64_t batch = fmap1.size(0), channels = fmap1.size(1);
    for (const Tensor& fmap : fmap2) {
        TORCH_CHECK(fmap.dim() == 4 && fmap.size(2) < most && fmap.size(3) < most,
                    "corr_lookup: a level of fmap2 is ", fmap.sizes());
        check_like(fmap, fmap1, {batch, channels, fmap.size(2), fmap.size(3)}, type,
                   "a level of fmap2");
    }
    check_like(coords, fmap1, {batch, 2, fmap1.size(2), fmap1.size(3)}, wide(fmap1), "coords");
    return {static_cast<int32_t>(radius), static_cast<int32_t>(window_stride), sparse};
}

inline std::array<int64_t, 4> output_sizes(const Tensor& fmap1, TensorList fmap2,
                                           const Window& window) {
    const int64_t depth = static_cast<int64_t>(fmap2.size()) * area(window);
    return {fmap1.size(0), depth, fmap1.size(2), fmap1.size(3)};
}

inline void check_grad(const Tensor& grad, const Tensor& fmap1, TensorList fmap2,
                       const Window& window) {
    check_like(grad, fmap1, output_sizes(fmap1, fmap2, window), wide(fmap1), "grad");
}

// Channels of a pixel side by side: no copy for maps in channels_last memory format.
inline Tensor pixel_by_pixel(const Tensor& fmap) {
    return fmap.contiguous(at::MemoryFormat::ChannelsLast);
}

// [B, C, H, W] of this type for a map's gradient, channels of a pixel side by side.
inline Tensor empty_like(const Tensor& fmap, at::ScalarType type) {
    return fmap
        .new_empty({fmap.size(0), fmap.size(2), fmap.size(3), fmap.size(1)},
                   fmap.options().dtype(type))
        .permute({0, 3, 1, 2});
}

inline Tensor zeros_like(const Tensor& fmap, at::ScalarType type) {
    return empty_like(fmap, type).zero_();
}

}  // namespace corr
