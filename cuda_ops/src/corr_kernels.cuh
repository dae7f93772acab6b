// Correlation lookup on CUDA: device code, which includes nothing of torch. Legend as in corr.h.
//
// A warp takes one query, a block several side by side, so that rows of the output are written
// together and neighbours find each other's taps in the cache. Within a warp, teams of lanes read
// one tap each, 16 bytes a lane. Windows are taken in tiles of positions, for any radius to fit.
// T type of the maps, S (Sum<T>) type of the sums and of coordinates.
#pragma once

#include "corr.h"
#include "numbers.cuh"
#include "place.h"

namespace corr {

constexpr int QUERIES = 8;  // of a block
constexpr int THREADS = QUERIES * WARP_SIZE;
constexpr int TEAM = 8;  // lanes that share a tap
constexpr int TEAMS = WARP_SIZE / TEAM;
constexpr int KEPT = 16;               // channels of its query that a lane keeps
constexpr int CHANNELS = TEAM * KEPT;  // that a warp takes at a time
constexpr int SIDE = 10;               // positions of a tile along an axis, at most
constexpr int TILE = SIDE * SIDE + 1;  // odd: neighbouring queries lie in different banks
constexpr int TILE_TAPS = (SIDE + 1) * (SIDE + 1);
constexpr int MOST_LEVELS = 16;

// Blocks that share a multiprocessor at least: a limit to registers that no kernel reaches by
// spilling. Sums of eight bytes take twice as many.
template <typename S>
constexpr int FORWARD_BLOCKS = sizeof(S) == 8 ? 2 : 3;
template <typename S>
constexpr int BACKWARD_BLOCKS = sizeof(S) == 8 ? 1 : 2;

// What products of T are summed in.
template <typename T>
struct SumOf {
    using type = float;
};
template <>
struct SumOf<double> {
    using type = double;
};
template <typename T>
using Sum = typename SumOf<T>::type;

template <typename T>
struct DeviceLevel {
    const T* map;
    Sum<T>* grad;
    int32_t height, width;
};

template <typename T>
struct Call {
    Window window;
    int64_t channels, queries;  // queries H*W of an image
    int32_t levels;
    Sum<T> scale;
    DeviceLevel<T> level[MOST_LEVELS];
    const T* fmap1;
    const Sum<T>* coords;
    const Sum<T>* grad;
    Sum<T>* output;
    T* grad1;             // or nullptr
    Sum<T>* grad_coords;  // or nullptr
};

// ---- who does what

// How many tiles a window has along an axis, and how many positions a tile.
FORCE_INLINE int32_t tiles(const Window& window) {
    const int32_t most = chained(window) ? SIDE : SIDE / 2;
    return (side(window) + most - 1) / most;
}

FORCE_INLINE int32_t tile_side(const Window& window) {
    return (side(window) + tiles(window) - 1) / tiles(window);
}

// Positions of a window, `columns` from i and `rows` from j, and their taps from k and m.
struct Tile {
    int32_t i, j, columns, rows;
    int32_t k, m, tap_columns, tap_rows;
};

__device__ __forceinline__ Tile tile_at(const Window& window, int32_t index) {
    const int32_t step = tile_side(window), across = tiles(window);
    const int32_t i = index / across * step, j = index % across * step;
    const int32_t columns = min(step, side(window) - i), rows = min(step, side(window) - j);
    const int32_t k = low_tap(window, i), m = low_tap(window, j);
    return {i, j, columns, rows, k, m, low_tap(window, i + columns - 1) + 2 - k,
            low_tap(window, j + rows - 1) + 2 - m};
}

// This block's queries and this warp's, which may lie behind the last.
struct Task {
    int64_t image, first, query;
    bool valid;
    int warp, lane, team, member;
};

template <typename T>
__device__ __forceinline__ Task task_of(const Call<T>& call) {
    const int64_t strips = (call.queries + QUERIES - 1) / QUERIES;
    const int64_t image = blockIdx.x / strips, first = blockIdx.x % strips * QUERIES;
    const int warp = threadIdx.x / WARP_SIZE, lane = threadIdx.x % WARP_SIZE;
    const int64_t query = first + warp;
    return {image, first, query, query < call.queries, warp, lane, lane / TEAM, lane % TEAM};
}

// Where a query lies in a level; far outside, none of its taps is inside.
template <typename S>
struct Spot {
    bool near;
    int32_t x, y;
    S dx, dy;
};

template <typename T>
__device__ __forceinline__ Spot<Sum<T>> spot_of(const Call<T>& call, const Task& task,
                                                int32_t level) {
    Spot<Sum<T>> spot{};
    if (!task.valid) return spot;
    const DeviceLevel<T>& map = call.level[level];
    const Sum<T>* coords = call.coords + 2 * task.image * call.queries + task.query;
    Sum<T> x = coords[0], y = coords[call.queries];
    for (int32_t l = 0; l < level; ++l) {
        x /= 2;
        y /= 2;
    }
    if (!near_level(x, map.width, call.window) || !near_level(y, map.height, call.window)) {
        return spot;
    }
    const Place<Sum<T>> column = floored(x), row = floored(y);
    return {true, column.pixel, row.pixel, column.fraction, row.fraction};
}

// Where window position (i, j) of a tile stands in the output, for the first query of an image.
template <typename T>
__device__ __forceinline__ int64_t plane(const Call<T>& call, const Task& task, int32_t level,
                                         const Tile& tile, int32_t position) {
    const int32_t i = tile.i + position / tile.rows, j = tile.j + position % tile.rows;
    const int64_t windows = (task.image * call.levels + level) * side(call.window);
    return ((windows + i) * side(call.window) + j) * call.queries;
}

// The channels of its query that a lane keeps, zeros behind the last.
template <int VEC, typename T>
__device__ __forceinline__ void keep(const Call<T>& call, const Task& task, int64_t base,
                                     Sum<T> (&kept)[KEPT]) {
    const T* at = call.fmap1 + (task.image * call.queries + task.query) * call.channels;
#pragma unroll
    for (int part = 0; part < KEPT / VEC; ++part) {
        const int64_t c = base + (part * TEAM + task.member) * VEC;
        Sum<T> values[VEC] = {};
        if (task.valid && c < call.channels) load(at + c, values);
#pragma unroll
        for (int v = 0; v < VEC; ++v) kept[part * VEC + v] = values[v];
    }
}

// Calls visit(tap, exists, inside, pixel) for every tap of a tile, one for each team at a time. All
// lanes take part in all calls: a tap that does not exist is not inside.
template <typename T, typename Visit>
__device__ __forceinline__ void walk(const Call<T>& call, const Task& task,
                                     const DeviceLevel<T>& level, const Tile& tile,
                                     const Spot<Sum<T>>& spot, Visit visit) {
    const int32_t count = tile.tap_columns * tile.tap_rows;
    int32_t k = task.team, m = 0;
    for (int32_t first = 0; first < count; first += TEAMS) {
        for (; k >= tile.tap_columns; k -= tile.tap_columns) ++m;
        const int32_t tap = first + task.team;
        const int32_t x = spot.x + shift(call.window, tile.k + k);
        const int32_t y = spot.y + shift(call.window, tile.m + m);
        const bool exists = tap < count;
        const bool inside = exists && spot.near && x >= 0 && x < level.width && y >= 0 &&
                            y < level.height;
        const int64_t pixels = static_cast<int64_t>(level.height) * level.width;
        const int64_t pixel = task.image * pixels + static_cast<int64_t>(y) * level.width + x;
        visit(tap, exists, inside, inside ? pixel : 0);
        k += TEAMS;
    }
}

// ---- forward: grid (images * strips of queries, levels * tiles * tiles)

template <typename T, int VEC>
__global__ void __launch_bounds__(THREADS, FORWARD_BLOCKS<Sum<T>>)
    corr_forward(const Call<T> call) {
    using S = Sum<T>;
    __shared__ S products[QUERIES][TILE_TAPS];
    __shared__ S fractions[QUERIES][2];
    const Task task = task_of(call);
    const int32_t all = tiles(call.window) * tiles(call.window);
    const int32_t level_index = blockIdx.y / all;
    const Tile tile = tile_at(call.window, blockIdx.y % all);
    const DeviceLevel<T>& level = call.level[level_index];
    const Spot<S> spot = spot_of(call, task, level_index);
    if (task.lane == 0) {
        fractions[task.warp][0] = spot.dx;
        fractions[task.warp][1] = spot.dy;
    }
    for (int64_t base = 0; base < call.channels; base += CHANNELS) {
        S kept[KEPT];
        keep<VEC>(call, task, base, kept);
        walk(call, task, level, tile, spot, [&](int32_t tap, bool exists, bool inside,
                                                int64_t pixel) {
            const T* at = level.map + pixel * call.channels;
            S total = 0;
#pragma unroll
            for (int part = 0; part < KEPT / VEC; ++part) {
                const int64_t c = base + (part * TEAM + task.member) * VEC;
                if (!inside || c >= call.channels) continue;
                S values[VEC];
                load(at + c, values);
#pragma unroll
                for (int v = 0; v < VEC; ++v) total += kept[part * VEC + v] * values[v];
            }
            total = over_lanes(total, 1, TEAM);
            if (exists && task.member == 0) {
                S& product = products[task.warp][tap];
                product = base == 0 ? total : product + total;
            }
        });
    }
    __syncthreads();
    for (int32_t index = threadIdx.x; index < tile.columns * tile.rows * QUERIES;
         index += THREADS) {
        const int32_t q = index % QUERIES, position = index / QUERIES;
        if (task.first + q >= call.queries) continue;
        const int32_t k = low_tap(call.window, tile.i + position / tile.rows) - tile.k;
        const int32_t m = low_tap(call.window, tile.j + position % tile.rows) - tile.m;
        const S* above = products[q] + m * tile.tap_columns + k;
        const S* below = above + tile.tap_columns;
        const S dx = fractions[q][0], dy = fractions[q][1];
        const S high = above[0] + dx * (above[1] - above[0]);
        const S low = below[0] + dx * (below[1] - below[0]);
        call.output[plane(call, task, level_index, tile, position) + task.first + q] =
            call.scale * (high + dy * (low - high));
    }
}

// ---- backward

// The gradient of the values of a tile's positions, for the whole block.
template <typename T>
__device__ __forceinline__ void read_grad(const Call<T>& call, const Task& task, int32_t level,
                                          const Tile& tile, Sum<T> (&values)[QUERIES][TILE]) {
    for (int32_t index = threadIdx.x; index < tile.columns * tile.rows * QUERIES;
         index += THREADS) {
        const int32_t q = index % QUERIES, position = index / QUERIES;
        const bool valid = task.first + q < call.queries;
        const int64_t at = plane(call, task, level, tile, position) + task.first + q;
        values[q][position] = valid ? call.scale * call.grad[at] : Sum<T>(0);
    }
}

// What a change of each tap's product (1 part), or of the query's x or y (3), does to the loss: the
// gradient of the positions that mix the tap, to weights [tap][part] of this warp's query.
template <int PARTS, typename T>
__device__ __forceinline__ void unmix(const Call<T>& call, const Task& task, const Tile& tile,
                                      const Spot<Sum<T>>& spot, Sum<T> shrink,
                                      const Sum<T> (&values)[TILE],
                                      Sum<T> (&weights)[TILE_TAPS][PARTS]) {
    using S = Sum<T>;
    for (int32_t tap = task.lane; tap < tile.tap_columns * tile.tap_rows; tap += WARP_SIZE) {
        const int32_t k = tap % tile.tap_columns, m = tap / tile.tap_columns;
        S parts[PARTS] = {};
        for (int32_t ends = 0; ends < 4; ++ends) {  // of the two columns and rows it may be between
            const int32_t right = ends % 2, under = ends / 2;
            const int32_t i = chained(call.window) ? k - right : k / 2;
            const int32_t j = chained(call.window) ? m - under : m / 2;
            const bool mixed = chained(call.window) || (k % 2 == right && m % 2 == under);
            if (!mixed || i < 0 || i >= tile.columns || j < 0 || j >= tile.rows) continue;
            const S value = values[i * tile.rows + j];
            const S weight_x = right ? spot.dx : 1 - spot.dx;
            const S weight_y = under ? spot.dy : 1 - spot.dy;
            parts[0] += weight_x * weight_y * value;
            if constexpr (PARTS > 1) {
                parts[1] += (right ? shrink : -shrink) * weight_y * value;
                parts[2] += (under ? shrink : -shrink) * weight_x * value;
            }
        }
        for (int part = 0; part < PARTS; ++part) weights[tap][part] = parts[part];
    }
}

// Adds the taps' channels from `base` on, weighted in PARTS ways, to a lane's sums.
template <int VEC, int PARTS, typename T>
__device__ __forceinline__ void gather(const Call<T>& call, const Task& task,
                                       const DeviceLevel<T>& level, const Tile& tile,
                                       const Spot<Sum<T>>& spot, int64_t base,
                                       const Sum<T> (&weights)[TILE_TAPS][PARTS],
                                       Sum<T> (&sums)[PARTS][KEPT]) {
    walk(call, task, level, tile, spot, [&](int32_t tap, bool, bool inside, int64_t pixel) {
        if (!inside) return;
        const T* at = level.map + pixel * call.channels;
        Sum<T> weight[PARTS];
#pragma unroll
        for (int part = 0; part < PARTS; ++part) weight[part] = weights[tap][part];
#pragma unroll
        for (int n = 0; n < KEPT / VEC; ++n) {
            const int64_t c = base + (n * TEAM + task.member) * VEC;
            if (c >= call.channels) continue;
            Sum<T> values[VEC];
            load(at + c, values);
#pragma unroll
            for (int v = 0; v < VEC; ++v) {
#pragma unroll
                for (int part = 0; part < PARTS; ++part) {
                    sums[part][n * VEC + v] += weight[part] * values[v];
                }
            }
        }
    });
}

// The gradients of fmap1 (PARTS 1), and of the coordinates (3): grid (images * strips of queries).
template <typename T, int VEC, int PARTS>
__global__ void __launch_bounds__(THREADS, BACKWARD_BLOCKS<Sum<T>>)
    corr_gather(const Call<T> call) {
    using S = Sum<T>;
    __shared__ S values[QUERIES][TILE];
    __shared__ S weights[QUERIES][TILE_TAPS][PARTS];
    const Task task = task_of(call);
    const int64_t query = task.image * call.queries + task.query;
    S slope_x = 0, slope_y = 0;
    for (int64_t base = 0; base < call.channels; base += CHANNELS) {
        S sums[PARTS][KEPT] = {};
        S shrink = 1;
        for (int32_t level = 0; level < call.levels; ++level, shrink /= 2) {
            const Spot<S> spot = spot_of(call, task, level);
            for (int32_t index = 0; index < tiles(call.window) * tiles(call.window); ++index) {
                const Tile tile = tile_at(call.window, index);
                read_grad(call, task, level, tile, values);
                __syncthreads();
                unmix<PARTS>(call, task, tile, spot, shrink, values[task.warp],
                             weights[task.warp]);
                __syncwarp();
                gather<VEC, PARTS>(call, task, call.level[level], tile, spot, base,
                                 weights[task.warp], sums);
                __syncthreads();  // before values and weights are written again
            }
        }
        S kept[KEPT];
        if constexpr (PARTS > 1) keep<VEC>(call, task, base, kept);
#pragma unroll
        for (int n = 0; n < KEPT / VEC; ++n) {
            const int64_t c = base + (n * TEAM + task.member) * VEC;
            S totals[VEC];
#pragma unroll
            for (int v = 0; v < VEC; ++v) {
                totals[v] = over_lanes(sums[0][n * VEC + v], TEAM, WARP_SIZE);
                if constexpr (PARTS > 1) {
                    slope_x += kept[n * VEC + v] * sums[1][n * VEC + v];
                    slope_y += kept[n * VEC + v] * sums[2][n * VEC + v];
                }
            }
            if (call.grad1 && task.valid && task.team == 0 && c < call.channels) {
                store(call.grad1 + query * call.channels + c, totals);
            }
        }
    }
    if constexpr (PARTS > 1) {
        slope_x = over_lanes(slope_x, 1, WARP_SIZE);
        slope_y = over_lanes(slope_y, 1, WARP_SIZE);
        if (task.valid && task.lane == 0) {
            S* grad = call.grad_coords + query + task.image * call.queries;
            grad[0] = slope_x;
            grad[call.queries] = slope_y;
        }
    }
}

// The gradient of fmap2, one addition a tap: grid (images * strips, levels * tiles * tiles).
template <typename T, int VEC>
__global__ void __launch_bounds__(THREADS, BACKWARD_BLOCKS<Sum<T>>)
    corr_scatter(const Call<T> call) {
    using S = Sum<T>;
    __shared__ S values[QUERIES][TILE];
    __shared__ S weights[QUERIES][TILE_TAPS][1];
    const Task task = task_of(call);
    const int32_t all = tiles(call.window) * tiles(call.window);
    const int32_t level_index = blockIdx.y / all;
    const Tile tile = tile_at(call.window, blockIdx.y % all);
    const DeviceLevel<T>& level = call.level[level_index];
    const Spot<S> spot = spot_of(call, task, level_index);
    read_grad(call, task, level_index, tile, values);
    __syncthreads();
    unmix<1>(call, task, tile, spot, S(1), values[task.warp], weights[task.warp]);
    __syncwarp();
    for (int64_t base = 0; base < call.channels; base += CHANNELS) {
        S kept[KEPT];
        keep<VEC>(call, task, base, kept);
        walk(call, task, level, tile, spot, [&](int32_t tap, bool, bool inside, int64_t pixel) {
            if (!inside) return;
            const S weight = weights[task.warp][tap][0];
            S* at = level.grad + pixel * call.channels;
#pragma unroll
            for (int n = 0; n < KEPT / VEC; ++n) {
                const int64_t c = base + (n * TEAM + task.member) * VEC;
                if (c >= call.channels) continue;
                S products[VEC];
#pragma unroll
                for (int v = 0; v < VEC; ++v) products[v] = weight * kept[n * VEC + v];
                add(at + c, products);
            }
        });
    }
}

}  // namespace corr
