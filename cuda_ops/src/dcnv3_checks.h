// What both devices ask of the arguments of DCNv3: nothing is read out of bounds.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <array>
#include <limits>
#include <tuple>

#include "dcnv3.h"

namespace dcnv3 {

using at::IntArrayRef;
using at::Tensor;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

// Sizes within an image, and positions along its axes, fit 32 bits; offsets in memory are 64 bits.
inline int32_t narrow(int64_t size) {
    TORCH_CHECK(size < std::numeric_limits<int32_t>::max(), "dcnv3: too large a size, ", size);
    return static_cast<int32_t>(size);
}

inline Axis axis(int64_t size, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
    TORCH_CHECK(kernel > 0 && stride > 0 && dilation > 0 && pad >= 0,
                "dcnv3: kernel, stride and dilation must be positive, pad not negative");
    Axis found{narrow(size), 0, narrow(kernel), narrow(stride), narrow(pad), narrow(dilation)};
    const int64_t room = narrow(size + 2 * pad) - dilation * (kernel - 1) - 1;
    TORCH_CHECK(room >= 0, "dcnv3: the input is smaller than the kernel");
    found.size_out = narrow(room / stride + 1);
    return found;
}

inline void check_like(const Tensor& tensor, const Tensor& input, IntArrayRef sizes,
                       const char* name) {
    TORCH_CHECK(tensor.device() == input.device(), "dcnv3: ", name, " is on ", tensor.device(),
                ", input on ", input.device());
    TORCH_CHECK(tensor.sizes() == sizes, "dcnv3: ", name, " is ", tensor.sizes(), ", should be ",
                sizes);
}

inline Geometry check(const Tensor& input, const Tensor& offset, const Tensor& mask,
                      IntArrayRef kernel, IntArrayRef stride, IntArrayRef pad,
                      IntArrayRef dilation, int64_t group, double offset_scale,
                      bool remove_center) {
    TORCH_CHECK(input.dim() == 4 && group > 0 && input.size(3) % group == 0,
                "dcnv3: input must be [N, H, W, C] with C a multiple of group");
    for (const IntArrayRef pair : {kernel, stride, pad, dilation}) {
        TORCH_CHECK(pair.size() == 2, "dcnv3: ", pair, " should be (h, w)");
    }
    TORCH_CHECK(!remove_center || (kernel[0] == kernel[1] && kernel[0] % 2 == 1),
                "dcnv3: remove_center needs a square kernel of odd size");
    narrow((input.size(1) + 2) * (input.size(2) + 2));  // pixels are counted, see place()
    narrow(input.size(3));
    const auto type = input.scalar_type();
    const bool half = type == at::kHalf || type == at::kBFloat16;
    TORCH_CHECK(half || type == at::kFloat || type == at::kDouble, "dcnv3: no kernel for ", type);
    TORCH_CHECK(mask.scalar_type() == type, "dcnv3: input is ", type, ", mask ",
                mask.scalar_type());
    TORCH_CHECK(offset.scalar_type() == type || (half && offset.scalar_type() == at::kFloat),
                "dcnv3: input is ", type, ", offset ", offset.scalar_type());
    const Axis h = axis(input.size(1), kernel[0], stride[0], pad[0], dilation[0]);
    const Axis w = axis(input.size(2), kernel[1], stride[1], pad[1], dilation[1]);
    const int64_t points = kernel[0] * kernel[1] - remove_center;
    const Geometry geometry{input.size(0),
                            h,
                            w,
                            narrow(group),
                            narrow(input.size(3) / group),
                            narrow(points),
                            offset_scale,
                            remove_center};
    narrow(2 * group * points);  // the numbers of one pixel are counted as well
    const int64_t rows = geometry.h.size_out, columns = geometry.w.size_out;
    check_like(mask, input, {geometry.batch, rows, columns, group * points}, "mask");
    check_like(offset, input, {geometry.batch, rows, columns, 2 * group * points}, "offset");
    return geometry;
}

inline void check_grad(const Tensor& grad, const Tensor& input, const Geometry& geometry) {
    TORCH_CHECK(grad.scalar_type() == input.scalar_type(), "dcnv3: input is ",
                input.scalar_type(), ", grad ", grad.scalar_type());
    check_like(grad, input,
               {geometry.batch, geometry.h.size_out, geometry.w.size_out, input.size(3)}, "grad");
}

inline std::array<int64_t, 4> output_sizes(const Tensor& input, const Geometry& geometry) {
    return {geometry.batch, geometry.h.size_out, geometry.w.size_out, input.size(3)};
}

}  // namespace dcnv3
