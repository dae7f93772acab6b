// The loops of the correlation lookup on the CPU, in float and double.
//
// Queries are taken in strips of one image. A query's products with all taps of a window are found
// once and then mixed bilinearly, side by side for the strip. Backward turns this round: the weight
// of each tap in the loss first, then the maps. Legend as in corr.h.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "corr.h"
#include "lanes.h"
#include "place.h"

namespace corr {

constexpr int STRIP = 16;  // queries, as many floats as the widest vector holds
constexpr int GROUP = 4;   // taps read at once

template <typename T>
struct Level {
    const T* map;
    T* grad;
    int32_t height, width;
    T shrink;  // pixels of this level in one of level 0
};

template <typename T>
struct Job {
    Window window;
    int64_t batch, channels, queries;  // queries H*W of an image
    T scale;
    std::vector<Level<T>> levels;
    const T *fmap1, *coords, *grad;
    T *output, *grad1, *grad_coords;

    int64_t strips() const { return (queries + STRIP - 1) / STRIP; }
    // Of the output: the first window position of a strip at a level.
    int64_t window_at(int64_t image, size_t level, int64_t first) const {
        return (image * levels.size() + level) * area(window) * queries + first;
    }
};

// One number for each query of a strip.
template <typename T>
struct Line {
    T of[STRIP];
};

struct Strip {
    int64_t image, first;  // of its queries
    int count;
};

template <typename T>
FORCE_INLINE Strip strip_at(const Job<T>& job, int64_t index) {
    const int64_t first = index % job.strips() * STRIP;
    const int count = static_cast<int>(std::min<int64_t>(STRIP, job.queries - first));
    return {index / job.strips(), first, count};
}

// Where a strip's queries lie in a level; far outside, none of the taps is found.
template <typename T>
struct Places {
    int32_t x[STRIP], y[STRIP];
    bool found[STRIP];
    Line<T> dx, dy;
};

template <typename T>
FORCE_INLINE Places<T> locate(const Job<T>& job, const Strip& strip, const Level<T>& level) {
    Places<T> places{};
    const T* coords = job.coords + 2 * strip.image * job.queries + strip.first;
    for (int q = 0; q < strip.count; ++q) {
        const T x = coords[q] * level.shrink, y = coords[job.queries + q] * level.shrink;
        if (!near_level(x, level.width, job.window) || !near_level(y, level.height, job.window)) {
            continue;
        }
        const Place<T> column = floored(x), row = floored(y);
        places.found[q] = true;
        places.x[q] = column.pixel;
        places.y[q] = row.pixel;
        places.dx.of[q] = column.fraction;
        places.dy.of[q] = row.fraction;
    }
    return places;
}

// The taps of one query that lie in the level: number in the window and pixel of the level.
struct Taps {
    std::vector<int32_t> shifts, number;
    std::vector<int64_t> pixel;
    int count = 0;

    explicit Taps(const Window& window)
        : shifts(taps(window)),
          number(shifts.size() * shifts.size() + 1),
          pixel(shifts.size() * shifts.size() + 1) {
        for (size_t k = 0; k < shifts.size(); ++k) shifts[k] = shift(window, k);
    }
};

template <typename T>
FORCE_INLINE void find(Taps& taps, const Level<T>& level, const Places<T>& places, int q) {
    const int32_t size = static_cast<int32_t>(taps.shifts.size());
    const int32_t* shifts = taps.shifts.data();
    int32_t* number = taps.number.data();
    int64_t* pixel = taps.pixel.data();
    int count = 0;
    for (int32_t m = 0; places.found[q] && m < size; ++m) {
        const int32_t y = places.y[q] + shifts[m];
        if (y < 0 || y >= level.height) continue;
        const int64_t row = static_cast<int64_t>(y) * level.width;
        for (int32_t k = 0; k < size; ++k) {
            const int32_t x = places.x[q] + shifts[k];
            number[count] = m * size + k;
            pixel[count] = row + x;
            count += (x >= 0) & (x < level.width);
        }
    }
    taps.count = count;
}

// Calls visit(first, number) for groups of taps, then for the rest one by one.
template <typename Visit>
FORCE_INLINE void in_groups(int count, Visit visit) {
    int at = 0;
    for (; at + GROUP <= count; at += GROUP) visit(std::integral_constant<int, GROUP>{}, at);
    for (; at < count; ++at) visit(std::integral_constant<int, 1>{}, at);
}

// ---- forward

template <typename V, int COUNT, typename T>
FORCE_INLINE void multiply(V (&sums)[COUNT], const T* query, const T* const (&taps)[COUNT],
                           int64_t c) {
    const V value = load<V>(query + c);
    for (int t = 0; t < COUNT; ++t) sums[t] += value * load<V>(taps[t] + c);
}

// Products of one query with COUNT taps, over all channels.
template <int COUNT, typename T>
FORCE_INLINE void products(const T* query, const T* const (&taps)[COUNT], int64_t channels,
                           T (&totals)[COUNT]) {
    typename Lanes<T>::Wide wide[COUNT]{}, more[COUNT]{};
    typename Lanes<T>::Narrow narrow[COUNT]{};
    T single[COUNT]{};
    int64_t c = 0;
    constexpr int64_t most = WIDTH<typename Lanes<T>::Wide, T>;
    constexpr int64_t few = WIDTH<typename Lanes<T>::Narrow, T>;
    for (; c + 2 * most <= channels; c += 2 * most) {
        multiply(wide, query, taps, c);
        multiply(more, query, taps, c + most);
    }
    for (; c + most <= channels; c += most) multiply(wide, query, taps, c);
    for (; c + few <= channels; c += few) multiply(narrow, query, taps, c);
    for (; c < channels; ++c) multiply(single, query, taps, c);
    for (int t = 0; t < COUNT; ++t) {
        const auto sum = folded<T>(wide[t] + more[t]) + narrow[t];
        T numbers[few];
        store(numbers, sum);
        totals[t] = single[t];
        for (const T number : numbers) totals[t] += number;
    }
}

// The products of query q of a strip, to its lane of each tap's line.
template <typename T>
FORCE_INLINE void correlate(const T* query, const T* map, int64_t channels, const Taps& taps,
                            int q, Line<T>* lines) {
    in_groups(taps.count, [&](auto group, int first) FORCE_INLINE_LAMBDA {
        constexpr int count = decltype(group)::value;
        const T* at[count];
        T totals[count];
        for (int t = 0; t < count; ++t) at[t] = map + taps.pixel[first + t] * channels;
        products<count>(query, at, channels, totals);
        for (int t = 0; t < count; ++t) lines[taps.number[first + t]].of[q] = totals[t];
    });
}

// From the taps' products to the window positions' values.
template <typename T>
FORCE_INLINE void mix(const Job<T>& job, const Strip& strip, const Places<T>& places,
                      const Line<T>* lines, T* output) {
    const int32_t size = taps(job.window), positions = side(job.window);
    for (int32_t i = 0; i < positions; ++i) {
        for (int32_t j = 0; j < positions; ++j, output += job.queries) {
            const Line<T>* above = lines + low_tap(job.window, j) * size + low_tap(job.window, i);
            const Line<T>* below = above + size;
            Line<T> values;
#pragma omp simd
            for (int q = 0; q < STRIP; ++q) {
                const T dx = places.dx.of[q], dy = places.dy.of[q];
                const T high = above[0].of[q] + dx * (above[1].of[q] - above[0].of[q]);
                const T low = below[0].of[q] + dx * (below[1].of[q] - below[0].of[q]);
                values.of[q] = job.scale * (high + dy * (low - high));
            }
            std::copy_n(values.of, strip.count, output);
        }
    }
}

template <typename T>
FORCE_INLINE void forward_strips(const Job<T>& job, int64_t begin, int64_t end) {
    Taps taps(job.window);
    std::vector<Line<T>> lines(taps.shifts.size() * taps.shifts.size());
    for (int64_t index = begin; index < end; ++index) {
        const Strip strip = strip_at(job, index);
        const T* query = job.fmap1 + (strip.image * job.queries + strip.first) * job.channels;
        for (size_t l = 0; l < job.levels.size(); ++l) {
            const Level<T>& level = job.levels[l];
            const int64_t pixels = static_cast<int64_t>(level.height) * level.width;
            const T* map = level.map + strip.image * pixels * job.channels;
            const Places<T> places = locate(job, strip, level);
            std::fill(lines.begin(), lines.end(), Line<T>{});
            for (int q = 0; q < strip.count; ++q) {
                find(taps, level, places, q);
                correlate(query + q * job.channels, map, job.channels, taps, q, lines.data());
            }
            T* output = job.output + job.window_at(strip.image, l, strip.first);
            mix(job, strip, places, lines.data(), output);
        }
    }
}

// ---- backward

// What a change of each tap's product, or of a query's x or y, does to the loss: the gradient of
// the values, through the mixing and back. [PARTS, N, N] lines: of the products alone (1), or also
// of the mixing's slopes along x and y (3), by which products enter the coordinates' gradient.
template <int PARTS, typename T>
FORCE_INLINE void unmix(const Job<T>& job, const Strip& strip, const Places<T>& places,
                        const Level<T>& level, const T* grad, std::vector<Line<T>>& weights) {
    const int32_t size = taps(job.window), positions = side(job.window);
    std::fill(weights.begin(), weights.end(), Line<T>{});
    Line<T>* slope_x = weights.data() + (PARTS > 1 ? size * size : 0);
    Line<T>* slope_y = weights.data() + (PARTS > 1 ? 2 * size * size : 0);
    for (int32_t i = 0; i < positions; ++i) {
        for (int32_t j = 0; j < positions; ++j, grad += job.queries) {
            const int32_t above = low_tap(job.window, j) * size + low_tap(job.window, i);
            const int32_t below = above + size;
            Line<T> values{};
            std::copy_n(grad, strip.count, values.of);
#pragma omp simd
            for (int q = 0; q < STRIP; ++q) {
                const T dx = places.dx.of[q], dy = places.dy.of[q];
                const T value = job.scale * values.of[q], slope = level.shrink * value;
                weights[above].of[q] += (1 - dy) * (1 - dx) * value;
                weights[above + 1].of[q] += (1 - dy) * dx * value;
                weights[below].of[q] += dy * (1 - dx) * value;
                weights[below + 1].of[q] += dy * dx * value;
                if constexpr (PARTS > 1) {
                    slope_x[above].of[q] -= (1 - dy) * slope;
                    slope_x[above + 1].of[q] += (1 - dy) * slope;
                    slope_x[below].of[q] -= dy * slope;
                    slope_x[below + 1].of[q] += dy * slope;
                    slope_y[above].of[q] -= (1 - dx) * slope;
                    slope_y[above + 1].of[q] -= dx * slope;
                    slope_y[below].of[q] += (1 - dx) * slope;
                    slope_y[below + 1].of[q] += dx * slope;
                }
            }
        }
    }
}

// Adds the taps' channels, weighted in PARTS ways, to sums [PARTS, C].
template <int PARTS, typename T>
FORCE_INLINE void gather(const T* map, int64_t channels, const Taps& taps, int q,
                         const Line<T>* weights, T* sums) {
    const size_t number = taps.shifts.size() * taps.shifts.size();
    in_groups(taps.count, [&](auto group, int first) FORCE_INLINE_LAMBDA {
        constexpr int count = decltype(group)::value;
        const T* at[count];
        T weight[PARTS][count];
        for (int t = 0; t < count; ++t) {
            at[t] = map + taps.pixel[first + t] * channels;
            for (int part = 0; part < PARTS; ++part) {
                weight[part][t] = weights[part * number + taps.number[first + t]].of[q];
            }
        }
        in_vectors<T, 1>(0, channels, [&](auto vector, int64_t c) FORCE_INLINE_LAMBDA {
            using V = typename decltype(vector)::type;
            V values[count];
            for (int t = 0; t < count; ++t) values[t] = load<V>(at[t] + c);
            for (int part = 0; part < PARTS; ++part) {
                V sum = load<V>(sums + part * channels + c);
                for (int t = 0; t < count; ++t) sum += values[t] * weight[part][t];
                store(sums + part * channels + c, sum);
            }
        });
    });
}

// The gradients of fmap1 (PARTS 1), and of the coordinates (3), of a range of strips.
template <int PARTS, typename T>
FORCE_INLINE void backward_strips(const Job<T>& job, int64_t begin, int64_t end) {
    Taps taps(job.window);
    const int64_t channels = job.channels;
    std::vector<Line<T>> weights(PARTS * taps.shifts.size() * taps.shifts.size());
    std::vector<T> sums(STRIP * PARTS * channels);
    for (int64_t index = begin; index < end; ++index) {
        const Strip strip = strip_at(job, index);
        std::fill(sums.begin(), sums.end(), T(0));
        for (size_t l = 0; l < job.levels.size(); ++l) {
            const Level<T>& level = job.levels[l];
            const int64_t pixels = static_cast<int64_t>(level.height) * level.width;
            const T* map = level.map + strip.image * pixels * channels;
            const Places<T> places = locate(job, strip, level);
            const T* grad = job.grad + job.window_at(strip.image, l, strip.first);
            unmix<PARTS>(job, strip, places, level, grad, weights);
            for (int q = 0; q < strip.count; ++q) {
                find(taps, level, places, q);
                gather<PARTS>(map, channels, taps, q, weights.data(),
                              sums.data() + q * PARTS * channels);
            }
        }
        const int64_t query = strip.image * job.queries + strip.first;
        for (int q = 0; q < strip.count; ++q) {
            const T* parts = sums.data() + q * PARTS * channels;
            if (job.grad1) std::copy_n(parts, channels, job.grad1 + (query + q) * channels);
            if constexpr (PARTS > 1) {
                T slopes[2];
                const T* const at[2] = {parts + channels, parts + 2 * channels};
                products<2>(job.fmap1 + (query + q) * channels, at, channels, slopes);
                T* grad = job.grad_coords + query + strip.image * job.queries + q;
                grad[0] = slopes[0];
                grad[job.queries] = slopes[1];
            }
        }
    }
}

// The gradient of fmap2: channels of one image and level.
struct Share {
    int64_t image;
    size_t level;
    int64_t begin, end;  // channels
};

// Adds channels of query q, weighted, to the taps' gradients.
template <typename T>
FORCE_INLINE void scatter(const T* query, const Share& share, int64_t channels, const Taps& taps,
                          int q, const Line<T>* weights, T* map) {
    in_groups(taps.count, [&](auto group, int first) FORCE_INLINE_LAMBDA {
        constexpr int count = decltype(group)::value;
        T* at[count];
        T weight[count];
        for (int t = 0; t < count; ++t) {
            at[t] = map + taps.pixel[first + t] * channels;
            weight[t] = weights[taps.number[first + t]].of[q];
        }
        in_vectors<T, 1>(share.begin, share.end, [&](auto vector, int64_t c) FORCE_INLINE_LAMBDA {
            using V = typename decltype(vector)::type;
            const V values = load<V>(query + c);
            for (int t = 0; t < count; ++t) {
                const V sum = load<V>(at[t] + c) + values * weight[t];
                store(at[t] + c, sum);
            }
        });
    });
}

template <typename T>
FORCE_INLINE void scatter_share(const Job<T>& job, const Share& share) {
    Taps taps(job.window);
    std::vector<Line<T>> weights(taps.shifts.size() * taps.shifts.size());
    const Level<T>& level = job.levels[share.level];
    const int64_t pixels = static_cast<int64_t>(level.height) * level.width;
    T* map = level.grad + share.image * pixels * job.channels;
    for (int64_t s = 0; s < job.strips(); ++s) {
        const Strip strip = strip_at(job, share.image * job.strips() + s);
        const Places<T> places = locate(job, strip, level);
        const T* grad = job.grad + job.window_at(strip.image, share.level, strip.first);
        unmix<1>(job, strip, places, level, grad, weights);
        for (int q = 0; q < strip.count; ++q) {
            const int64_t query = strip.image * job.queries + strip.first + q;
            find(taps, level, places, q);
            scatter(job.fmap1 + query * job.channels, share, job.channels, taps, q, weights.data(),
                    map);
        }
    }
}

}  // namespace corr
