// A position between pixels, along one axis.
#pragma once

#include <cstdint>

#include "inline.h"

// The pixel at or before the position, and the fraction on to the next.
template <typename T>
struct Place {
    int32_t pixel;
    T fraction;
};

// For positions that an integer can hold: no huge one and no NaN.
template <typename T>
FORCE_INLINE Place<T> floored(T position) {
    int32_t pixel = static_cast<int32_t>(position);
    pixel -= static_cast<T>(pixel) > position;  // towards minus infinity, as floor
    return {pixel, position - static_cast<T>(pixel)};
}
