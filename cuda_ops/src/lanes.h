// Vectors of numbers for the CPU's inner loops, and code compiled for several kinds of x86-64.
#pragma once

#include <cstdint>
#include <cstring>
#include <iterator>

#include "inline.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // no wide vector is passed between functions
#endif

// A function marked CLONES is compiled for AVX-512, AVX2 and the oldest x86-64, and chosen when the
// library is loaded; what it calls follows only if it is inlined.
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__)
#if __GNUC__ >= 12
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else  // knows these levels by no name
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#else
#define CLONES
#endif

// 32 and 16 bytes (float), 32 (double); single numbers where the compiler has no vectors. No wider:
// without AVX-512, GCC keeps vectors of 64 bytes in memory, at half the speed.
template <typename T>
struct Lanes {
#if defined(__GNUC__)
    typedef T Wide __attribute__((vector_size(32)));
    typedef T Narrow __attribute__((vector_size(4 * sizeof(T))));
#else
    using Wide = T;
    using Narrow = T;
#endif
};

template <typename V, typename T>
constexpr int64_t WIDTH = sizeof(V) / sizeof(T);

// V from the numbers at `at`, aligned or not, and back.
template <typename V, typename T>
FORCE_INLINE V load(const T* at) {
    V values;
    std::memcpy(&values, at, sizeof(V));
    return values;
}

template <typename V, typename T>
FORCE_INLINE void store(T* at, const V& values) {
    std::memcpy(at, &values, sizeof(V));
}

// COUNT vectors side by side.
template <typename V, int COUNT>
struct Vectors {
    using type = V;
    static constexpr int count = COUNT;
};

// Calls visit(Vectors<V, COUNT>{}, index) for begin..end: MOST wide vectors at once while they fit,
// then single ones, as wide as fit.
template <typename T, int MOST, typename Visit>
FORCE_INLINE void in_vectors(int64_t begin, int64_t end, Visit visit) {
    using Wide = typename Lanes<T>::Wide;
    using Narrow = typename Lanes<T>::Narrow;
    constexpr int64_t wide = WIDTH<Wide, T>, narrow = WIDTH<Narrow, T>;
    int64_t at = begin;
    for (; at + MOST * wide <= end; at += MOST * wide) visit(Vectors<Wide, MOST>{}, at);
    if constexpr (MOST > 1) {
        for (; at + wide <= end; at += wide) visit(Vectors<Wide, 1>{}, at);
    }
    for (; at + narrow <= end; at += narrow) visit(Vectors<Narrow, 1>{}, at);
    for (; at < end; ++at) visit(Vectors<T, 1>{}, at);
}

// A wide vector as a narrow one of partial sums.
template <typename T>
FORCE_INLINE typename Lanes<T>::Narrow folded(const typename Lanes<T>::Wide& wide) {
    using Narrow = typename Lanes<T>::Narrow;
    constexpr int64_t width = WIDTH<Narrow, T>;
    T numbers[WIDTH<typename Lanes<T>::Wide, T>];
    std::memcpy(numbers, &wide, sizeof(wide));
    Narrow sum = load<Narrow>(numbers);
    for (size_t at = width; at < std::size(numbers); at += width) sum += load<Narrow>(numbers + at);
    return sum;
}
