// The geometry of DCNv3, shared by the CPU and the CUDA kernels; includes nothing of torch.
//
// N batch, H W the input's size, Ho Wo the output's, G groups, D channels of a group (depth),
// C = G*D channels, P points of the kernel.
// input [N, H, W, C]   output [N, Ho, Wo, C]   offset [N, Ho, Wo, G, P, 2] (x, y)
// mask [N, Ho, Wo, G, P]
#pragma once

#include <cstdint>

#include "inline.h"
#include "place.h"

namespace dcnv3 {

constexpr int TAPS = 4;  // pixels around a point: above left, above right, below left, below right

struct Axis {
    int32_t size, size_out;
    int32_t kernel, stride, pad, dilation;
};

struct Geometry {
    int64_t batch;
    Axis h, w;
    int32_t group, depth, points;
    double offset_scale;
    bool remove_center;
};

// The whole pixels from the kernel's first point to its centre.
FORCE_INLINE int32_t radius(const Axis& axis) { return axis.dilation * (axis.kernel - 1) / 2; }

// Where the kernel's centre lies in the input for one output index.
FORCE_INLINE int32_t centre(const Axis& axis, int32_t out) {
    return out * axis.stride - axis.pad + radius(axis);
}

// A point's distance from the kernel's centre in pixels, at zero offset and scale 1. The kernel is
// walked column by column; remove_center leaves its middle out.
struct Reach {
    int32_t y, x;
};

FORCE_INLINE Reach reach(const Geometry& geometry, int32_t point) {
    const int32_t rows = geometry.h.kernel;
    const int32_t middle = geometry.w.kernel / 2 * rows + rows / 2;
    if (geometry.remove_center && point >= middle) ++point;
    return {point % rows * geometry.h.dilation - radius(geometry.h),
            point / rows * geometry.w.dilation - radius(geometry.w)};
}

// The range is tested before converting: an integer holds no huge position and no NaN. A position
// that touches no pixel becomes one that lies as far before the first; it depends on the size as
// compilers make a branch of a constant, and no vectors of the loops over points.
template <typename T>
FORCE_INLINE Place<T> place(T position, T size) {
    const bool inside = (position > T(-1)) & (position < size);
    return floored(inside ? position : -2 - size);
}

// The tap's index among the H*W pixels of the input; -1 outside.
FORCE_INLINE int32_t cell(int32_t y, int32_t x, int32_t height, int32_t width) {
    const bool inside = (y >= 0) & (y < height) & (x >= 0) & (x < width);
    return (y * width + x) | -static_cast<int32_t>(!inside);
}

}  // namespace dcnv3
