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

#if defined(__CUDACC__)
#define CORR_INLINE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define CORR_INLINE inline __attribute__((always_inline))
#else
#define CORR_INLINE inline
#endif

namespace corr {

struct Window {
    int32_t radius, stride;
    bool sparse;  // mixes taps `stride` pixels apart, not neighbours
};

CORR_INLINE int32_t side(const Window& window) { return 2 * window.radius + 1; }

CORR_INLINE int32_t area(const Window& window) { return side(window) * side(window); }

CORR_INLINE bool chained(const Window& window) { return window.sparse || window.stride == 1; }

// N, the taps along one axis.
CORR_INLINE int32_t taps(const Window& window) {
    return chained(window) ? side(window) + 1 : 2 * side(window);
}

// The low tap of window position i; the high one is the next.
CORR_INLINE int32_t low_tap(const Window& window, int32_t i) { return chained(window) ? i : 2 * i; }

// Pixels from the query's whole pixel to tap k.
CORR_INLINE int32_t shift(const Window& window, int32_t k) {
    return chained(window) ? window.stride * (k - window.radius)
                           : window.stride * (k / 2 - window.radius) + k % 2;
}

// Whole pixel at or below a query's place along one axis, and the fraction on to the place.
template <typename T>
struct Place {
    int32_t pixel;
    T fraction;
};

// Whether any tap can lie in 0..size-1; tested before converting to an integer, which cannot hold a
// huge place or NaN.
template <typename T>
CORR_INLINE bool near_level(T at, int32_t size, const Window& window) {
    const int32_t reach = window.stride * (window.radius + 1) + 1;
    return at > static_cast<T>(-reach) && at < static_cast<T>(size) + static_cast<T>(reach);
}

// For places near the level alone.
template <typename T>
CORR_INLINE Place<T> place(T at) {
    int32_t pixel = static_cast<int32_t>(at);
    pixel -= static_cast<T>(pixel) > at;  // towards minus infinity, as floor
    return {pixel, at - static_cast<T>(pixel)};
}

}  // namespace corr
