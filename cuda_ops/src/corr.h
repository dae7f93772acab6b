// The geometry of the correlation lookup, shared by the CPU and the CUDA kernels; includes nothing
// of torch.
//
// B batch, C channels, H W the queries, Hl Wl a level of L, S = 2 * radius + 1 window positions
// along an axis, R = S * S of them in a window.
// fmap1 [B, H, W, C]   level l of fmap2 [B, Hl, Wl, C]   coords [B, 2, H, W] (x, y)
// output [B, L, R, H, W], a window column by column
//
// A position lies between taps, whole pixels. Along one axis a window has N taps, numbered from low
// to high: S + 1 where one's high tap is the next one's low tap, else 2 * S, two for each position.
#pragma once

#include <cstdint>

#include "inline.h"

namespace corr {

struct Window {
    int32_t radius, stride;
    bool sparse;  // mixes taps `stride` pixels apart, not neighbours
};

FORCE_INLINE int32_t side(const Window& window) { return 2 * window.radius + 1; }

FORCE_INLINE int32_t area(const Window& window) { return side(window) * side(window); }

FORCE_INLINE bool chained(const Window& window) { return window.sparse || window.stride == 1; }

// N, the taps along one axis.
FORCE_INLINE int32_t taps(const Window& window) {
    return chained(window) ? side(window) + 1 : 2 * side(window);
}

// The low tap of window position i; the high one is the next.
FORCE_INLINE int32_t low_tap(const Window& window, int32_t i) {
    return chained(window) ? i : 2 * i;
}

// Pixels from the query's whole pixel to tap k.
FORCE_INLINE int32_t shift(const Window& window, int32_t k) {
    return chained(window) ? window.stride * (k - window.radius)
                           : window.stride * (k / 2 - window.radius) + k % 2;
}

// Whether any tap can lie in 0..size-1 for a query at this place; tested before converting to an
// integer, which cannot hold a huge place or NaN.
template <typename T>
FORCE_INLINE bool near_level(T at, int32_t size, const Window& window) {
    const int32_t reach = window.stride * (window.radius + 1) + 1;
    return at > static_cast<T>(-reach) && at < static_cast<T>(size) + static_cast<T>(reach);
}

}  // namespace corr
