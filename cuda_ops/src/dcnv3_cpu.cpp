// DCNv3 on the CPU, in float and double; float16 and bfloat16 are computed in float.
//
// Every number is added up in an order that does not depend on the number of threads. The gradient
// of the input is shared out by channels, the others by rows of the output.
// Legend as in dcnv3.h; K = G*P points of one output pixel.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "dcnv3_checks.h"
#include "lanes.h"

namespace dcnv3 {
namespace {

constexpr int MOST = 2;  // wide vectors at once, which share what is known of a tap

template <typename T>
struct Job {
    Geometry geometry;
    const T *input, *offset, *mask, *grad;
    T *output, *grad_input, *grad_offset, *grad_mask;

    int64_t channels() const { return geometry.group * geometry.depth; }
    int64_t pixels() const { return geometry.h.size * geometry.w.size; }
    int64_t rows() const { return geometry.batch * geometry.h.size_out; }
};

// The points of one output pixel, some groups of it, as arrays over K.
template <typename T>
struct Points {
    std::vector<T> reach_y, reach_x, fraction_y, fraction_x, weight, nowhere;
    std::vector<int32_t> cell;  // [TAPS, K], as weight

    explicit Points(const Geometry& geometry)
        : reach_y(geometry.group * geometry.points),
          reach_x(reach_y.size()),
          fraction_y(reach_y.size()),
          fraction_x(reach_y.size()),
          weight(TAPS * reach_y.size()),
          nowhere(geometry.depth),
          cell(TAPS * reach_y.size()) {
        for (size_t k = 0; k < reach_y.size(); ++k) {
            const Reach distance = reach(geometry, k % geometry.points);
            reach_y[k] = distance.y;
            reach_x[k] = distance.x;
        }
    }
};

// Finds the taps of `count` points of output pixel (row, column) and their bilinear weights.
template <typename T>
FORCE_INLINE void locate(Points<T>& points, const Geometry& geometry, int64_t row, int64_t column,
                         const T* offset, int64_t count) {
    const T height = geometry.h.size, width = geometry.w.size, scale = geometry.offset_scale;
    const T from_y = centre(geometry.h, row), from_x = centre(geometry.w, column);
    const int32_t rows = geometry.h.size, columns = geometry.w.size;
    const T *reach_y = points.reach_y.data(), *reach_x = points.reach_x.data();
    T *fraction_y = points.fraction_y.data(), *fraction_x = points.fraction_x.data();
    T* weight = points.weight.data();
    int32_t* cells = points.cell.data();
#pragma omp simd
    for (int64_t k = 0; k < count; ++k) {
        const Place<T> y = place(from_y + scale * (reach_y[k] + offset[2 * k + 1]), height);
        const Place<T> x = place(from_x + scale * (reach_x[k] + offset[2 * k]), width);
        const T below = y.fraction, right = x.fraction;
        fraction_y[k] = below;
        fraction_x[k] = right;
        weight[k] = (1 - below) * (1 - right);
        weight[count + k] = (1 - below) * right;
        weight[2 * count + k] = below * (1 - right);
        weight[3 * count + k] = below * right;
        cells[k] = cell(y.pixel, x.pixel, rows, columns);
        cells[count + k] = cell(y.pixel, x.pixel + 1, rows, columns);
        cells[2 * count + k] = cell(y.pixel + 1, x.pixel, rows, columns);
        cells[3 * count + k] = cell(y.pixel + 1, x.pixel + 1, rows, columns);
    }
}

template <typename T>
FORCE_INLINE void weigh(Points<T>& points, const T* mask, int64_t count) {
    T* weight = points.weight.data();
    for (int tap = 0; tap < TAPS; ++tap) {
#pragma omp simd
        for (int64_t k = 0; k < count; ++k) weight[tap * count + k] *= mask[k];
    }
}

// The tap's channels; a tap outside the image reads zeros (or is written where nobody looks).
template <typename T, typename U>
FORCE_INLINE U* tap_at(int32_t cell, U* image, T* nowhere, int64_t channels) {
    return cell < 0 ? nowhere : image + cell * channels;
}

// ---- forward

template <typename V, int COUNT, typename T>
FORCE_INLINE void mix(Points<T>& points, int64_t first, int64_t count, int64_t number,
                      const T* image, int64_t channels, int64_t d, T* output) {
    V sums[COUNT]{};
    for (int64_t p = first; p < first + number; ++p) {
        for (int t = 0; t < TAPS; ++t) {
            const T weight = points.weight[t * count + p];
            const T* tap =
                tap_at(points.cell[t * count + p], image, points.nowhere.data(), channels) + d;
            for (int i = 0; i < COUNT; ++i) sums[i] += load<V>(tap + i * WIDTH<V, T>) * weight;
        }
    }
    for (int i = 0; i < COUNT; ++i) store(output + d + i * WIDTH<V, T>, sums[i]);
}

template <typename T>
FORCE_INLINE void forward_rows(const Job<T>& job, int64_t begin, int64_t end) {
    const Geometry& geometry = job.geometry;
    const int64_t number = geometry.points, count = geometry.group * number;
    const int64_t channels = job.channels(), columns = geometry.w.size_out;
    Points<T> points(geometry);
    for (int64_t pixel = begin * columns; pixel < end * columns; ++pixel) {
        const int64_t row = pixel / columns, n = row / geometry.h.size_out;
        locate(points, geometry, row % geometry.h.size_out, pixel % columns,
               job.offset + 2 * pixel * count, count);
        weigh(points, job.mask + pixel * count, count);
        for (int64_t g = 0; g < geometry.group; ++g) {
            const T* image = job.input + n * job.pixels() * channels + g * geometry.depth;
            T* output = job.output + pixel * channels + g * geometry.depth;
            in_vectors<T, MOST>(0, geometry.depth, [&](auto part, int64_t d) FORCE_INLINE_LAMBDA {
                using V = typename decltype(part)::type;
                mix<V, part.count>(points, g * number, count, number, image, channels, d, output);
            });
        }
    }
}

// ---- gradients of offset and mask

// Sums of which a product consists, that are still to be added.
template <typename T>
constexpr int64_t PARTIAL_SUMS = WIDTH<typename Lanes<T>::Narrow, T>;

// <grad, tap> for the four taps of point k, each as PARTIAL_SUMS numbers.
template <typename T>
FORCE_INLINE void multiply(Points<T>& points, int64_t k, int64_t count, const T* image,
                           int64_t channels, int64_t depth, const T* grad, T* products) {
    using Wide = typename Lanes<T>::Wide;
    using Narrow = typename Lanes<T>::Narrow;
    constexpr int64_t wide_width = WIDTH<Wide, T>;
    const T* tap[TAPS];
    for (int t = 0; t < TAPS; ++t) {
        tap[t] = tap_at(points.cell[t * count + k], image, points.nowhere.data(), channels);
    }
    const int64_t wide_depth = depth / wide_width * wide_width;
    Wide wide[TAPS]{};
    for (int64_t d = 0; d < wide_depth; d += wide_width) {
        for (int t = 0; t < TAPS; ++t) wide[t] += load<Wide>(tap[t] + d) * load<Wide>(grad + d);
    }
    Narrow narrow[TAPS];
    for (int t = 0; t < TAPS; ++t) narrow[t] = folded<T>(wide[t]);
    int64_t d = wide_depth;
    for (; d + PARTIAL_SUMS<T> <= depth; d += PARTIAL_SUMS<T>) {
        for (int t = 0; t < TAPS; ++t) {
            narrow[t] += load<Narrow>(tap[t] + d) * load<Narrow>(grad + d);
        }
    }
    for (int t = 0; t < TAPS; ++t) store(products + t * PARTIAL_SUMS<T>, narrow[t]);
    for (; d < depth; ++d) {
        for (int t = 0; t < TAPS; ++t) products[t * PARTIAL_SUMS<T>] += tap[t][d] * grad[d];
    }
}

// From the products to the gradients of all points of an output pixel.
template <typename T>
FORCE_INLINE void differentiate(const Points<T>& points, T scale, int64_t count, const T* products,
                                const T* mask, T* grad_offset, T* grad_mask) {
    const T *fraction_y = points.fraction_y.data(), *fraction_x = points.fraction_x.data();
#pragma omp simd
    for (int64_t k = 0; k < count; ++k) {
        T tap[TAPS];
        for (int t = 0; t < TAPS; ++t) {
            const T* parts = products + (k * TAPS + t) * PARTIAL_SUMS<T>;
            tap[t] = parts[0];
            for (int64_t part = 1; part < PARTIAL_SUMS<T>; ++part) tap[t] += parts[part];
        }
        const T y = fraction_y[k], x = fraction_x[k], factor = scale * mask[k];
        const T above = tap[0] + x * (tap[1] - tap[0]), below = tap[2] + x * (tap[3] - tap[2]);
        grad_mask[k] = above + y * (below - above);
        grad_offset[2 * k] = factor * ((1 - y) * (tap[1] - tap[0]) + y * (tap[3] - tap[2]));
        grad_offset[2 * k + 1] = factor * (below - above);
    }
}

template <typename T>
FORCE_INLINE void backward_rows(const Job<T>& job, int64_t begin, int64_t end) {
    const Geometry& geometry = job.geometry;
    const int64_t number = geometry.points, count = geometry.group * number;
    const int64_t channels = job.channels(), columns = geometry.w.size_out;
    Points<T> points(geometry);
    std::vector<T> products(count * TAPS * PARTIAL_SUMS<T>);
    for (int64_t pixel = begin * columns; pixel < end * columns; ++pixel) {
        const int64_t row = pixel / columns, n = row / geometry.h.size_out;
        locate(points, geometry, row % geometry.h.size_out, pixel % columns,
               job.offset + 2 * pixel * count, count);
        for (int64_t k = 0; k < count; ++k) {
            const int64_t from = k / number * geometry.depth;
            multiply(points, k, count, job.input + n * job.pixels() * channels + from, channels,
                     geometry.depth, job.grad + pixel * channels + from,
                     products.data() + k * TAPS * PARTIAL_SUMS<T>);
        }
        differentiate<T>(points, geometry.offset_scale, count, products.data(),
                         job.mask + pixel * count, job.grad_offset + 2 * pixel * count,
                         job.grad_mask + pixel * count);
    }
}

// ---- gradient of the input

template <typename V, int COUNT, typename T>
FORCE_INLINE void scatter(Points<T>& points, int64_t first, int64_t count, int64_t number,
                          const T* grad, T* image, int64_t channels, int64_t d) {
    V values[COUNT];
    for (int i = 0; i < COUNT; ++i) values[i] = load<V>(grad + d + i * WIDTH<V, T>);
    for (int64_t p = first; p < first + number; ++p) {
        for (int t = 0; t < TAPS; ++t) {
            const T weight = points.weight[t * count + p];
            T* tap =
                tap_at(points.cell[t * count + p], image, points.nowhere.data(), channels) + d;
            for (int i = 0; i < COUNT; ++i) {
                T* at = tap + i * WIDTH<V, T>;
                store(at, load<V>(at) + values[i] * weight);
            }
        }
    }
}

// All of one image's gradient in channels begin..end, which nobody else writes. It is summed where
// the channels of a pixel's group lie beside those of the next pixel: in grad_input they are C apart,
// and the pixels around a point would fight for a few places of the cache.
template <typename T>
FORCE_INLINE void backward_channels(const Job<T>& job, int64_t n, int64_t begin, int64_t end) {
    const Geometry& geometry = job.geometry;
    const int64_t depth = geometry.depth, number = geometry.points, channels = job.channels();
    const int64_t first_group = begin / depth, last_group = (end + depth - 1) / depth;
    const int64_t count = (last_group - first_group) * number;  // of the groups touched
    const int64_t size_out = int64_t(geometry.h.size_out) * geometry.w.size_out;
    const auto first = [&](int64_t g) { return std::max(begin, g * depth); };
    const auto width = [&](int64_t g) { return std::min(end, (g + 1) * depth) - first(g); };
    std::vector<T> sums(job.pixels() * (end - begin));
    const auto sums_of = [&](int64_t g) { return sums.data() + job.pixels() * (first(g) - begin); };
    Points<T> points(geometry);
    for (int64_t pixel = n * size_out; pixel < (n + 1) * size_out; ++pixel) {
        const int64_t k = (pixel * geometry.group + first_group) * number;
        locate(points, geometry, pixel % size_out / geometry.w.size_out,
               pixel % geometry.w.size_out, job.offset + 2 * k, count);
        weigh(points, job.mask + k, count);
        for (int64_t g = first_group; g < last_group; ++g) {
            const T* grad = job.grad + pixel * channels + first(g);
            in_vectors<T, MOST>(0, width(g), [&](auto part, int64_t d) FORCE_INLINE_LAMBDA {
                using V = typename decltype(part)::type;
                scatter<V, part.count>(points, (g - first_group) * number, count, number, grad,
                                       sums_of(g), width(g), d);
            });
        }
    }
    for (int64_t pixel = 0; pixel < job.pixels(); ++pixel) {
        T* grad_input = job.grad_input + (n * job.pixels() + pixel) * channels;
        for (int64_t g = first_group; g < last_group; ++g) {
            std::copy_n(sums_of(g) + pixel * width(g), width(g), grad_input + first(g));
        }
    }
}

// A unit is MOST vectors of channels of one group of one image, or what the group has left.
template <typename T>
constexpr int64_t UNIT = MOST * WIDTH<typename Lanes<T>::Wide, T>;

template <typename T>
int64_t units_of_group(const Geometry& geometry) {
    return (geometry.depth + UNIT<T> - 1) / UNIT<T>;
}

template <typename T>
FORCE_INLINE void backward_units(const Job<T>& job, int64_t begin, int64_t end) {
    const int64_t in_group = units_of_group<T>(job.geometry);
    const int64_t in_image = in_group * job.geometry.group, depth = job.geometry.depth;
    const auto channel = [&](int64_t unit) {
        return unit / in_group * depth + unit % in_group * UNIT<T>;
    };
    for (int64_t n = begin / in_image; n * in_image < end; ++n) {
        const int64_t first = std::max(begin - n * in_image, int64_t(0));
        const int64_t last = std::min(end - n * in_image, in_image);
        backward_channels(job, n, channel(first), channel(last));
    }
}

// ---- the loops, compiled once for each kind of processor

#define DCNV3_LOOPS(T)                                                               \
    CLONES void run_forward(const Job<T>& job, int64_t begin, int64_t end) {         \
        forward_rows(job, begin, end);                                               \
    }                                                                                \
    CLONES void run_backward_rows(const Job<T>& job, int64_t begin, int64_t end) {   \
        backward_rows(job, begin, end);                                              \
    }                                                                                \
    CLONES void run_backward_units(const Job<T>& job, int64_t begin, int64_t end) {  \
        backward_units(job, begin, end);                                             \
    }
DCNV3_LOOPS(float)
DCNV3_LOOPS(double)

// Rows that are worth a thread of their own.
template <typename T>
int64_t grain(const Job<T>& job) {
    const int64_t sums = job.channels() * job.geometry.w.size_out * job.geometry.points;
    return 1 + 100000 / std::max(sums, int64_t(1));
}

template <typename T>
void forward(const Job<T>& job) {
    at::parallel_for(0, job.rows(), grain(job), [&](int64_t begin, int64_t end) {
        run_forward(job, begin, end);
    });
}

template <typename T>
void backward(const Job<T>& job) {
    if (job.grad_offset) {
        at::parallel_for(0, job.rows(), grain(job), [&](int64_t begin, int64_t end) {
            run_backward_rows(job, begin, end);
        });
    }
    if (job.grad_input) {
        const int64_t units =
            job.geometry.batch * job.geometry.group * units_of_group<T>(job.geometry);
        at::parallel_for(0, units, 1, [&](int64_t begin, int64_t end) {
            run_backward_units(job, begin, end);
        });
    }
}

// ---- the operators

// As the loops want it: contiguous, in the type of the sums.
Tensor prepared(const Tensor& tensor, at::ScalarType type) {
    return tensor.to(type).contiguous();
}

template <typename T>
Tensor forward_as(const Geometry& geometry, const Tensor& input, const Tensor& offset,
                  const Tensor& mask) {
    Tensor output = input.new_empty(output_sizes(input, geometry));
    forward(Job<T>{.geometry = geometry,
                   .input = input.const_data_ptr<T>(),
                   .offset = offset.const_data_ptr<T>(),
                   .mask = mask.const_data_ptr<T>(),
                   .output = output.mutable_data_ptr<T>()});
    return output;
}

template <typename T>
Gradients backward_as(const Geometry& geometry, const Tensor& grad, const Tensor& input,
                      const Tensor& offset, const Tensor& mask, std::array<bool, 3> needs) {
    const bool points = needs[1] || needs[2];  // both come of the same sums
    Tensor grad_input = input.new_empty(needs[0] ? input.sizes() : IntArrayRef{0});
    Tensor grad_offset = offset.new_empty(points ? offset.sizes() : IntArrayRef{0});
    Tensor grad_mask = mask.new_empty(points ? mask.sizes() : IntArrayRef{0});
    backward(Job<T>{.geometry = geometry,
                    .input = input.const_data_ptr<T>(),
                    .offset = offset.const_data_ptr<T>(),
                    .mask = mask.const_data_ptr<T>(),
                    .grad = grad.const_data_ptr<T>(),
                    .grad_input = needs[0] ? grad_input.mutable_data_ptr<T>() : nullptr,
                    .grad_offset = points ? grad_offset.mutable_data_ptr<T>() : nullptr,
                    .grad_mask = points ? grad_mask.mutable_data_ptr<T>() : nullptr});
    return {grad_input, needs[1] ? grad_offset : offset.new_empty(0),
            needs[2] ? grad_mask : mask.new_empty(0)};
}

Tensor dcnv3_cpu(const Tensor& input, const Tensor& offset, const Tensor& mask, IntArrayRef kernel,
                 IntArrayRef stride, IntArrayRef pad, IntArrayRef dilation, int64_t group,
                 double offset_scale, bool remove_center) {
    const Geometry geometry = check(input, offset, mask, kernel, stride, pad, dilation, group,
                                    offset_scale, remove_center);
    const at::ScalarType type = input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    const auto run = type == at::kDouble ? forward_as<double> : forward_as<float>;
    return run(geometry, prepared(input, type), prepared(offset, type), prepared(mask, type))
        .to(input.scalar_type());
}

Gradients dcnv3_backward_cpu(const Tensor& grad, const Tensor& input, const Tensor& offset,
                             const Tensor& mask, IntArrayRef kernel, IntArrayRef stride,
                             IntArrayRef pad, IntArrayRef dilation, int64_t group,
                             double offset_scale, bool remove_center, std::array<bool, 3> needs) {
    const Geometry geometry = check(input, offset, mask, kernel, stride, pad, dilation, group,
                                    offset_scale, remove_center);
    check_grad(grad, input, geometry);
    const at::ScalarType type = input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    const auto run = type == at::kDouble ? backward_as<double> : backward_as<float>;
    const auto [grad_input, grad_offset, grad_mask] =
        run(geometry, prepared(grad, type), prepared(input, type), prepared(offset, type),
            prepared(mask, type), needs);
    return {grad_input.to(input.scalar_type()), grad_offset.to(offset.scalar_type()),
            grad_mask.to(mask.scalar_type())};
}

}  // namespace

TORCH_LIBRARY_IMPL(cuda_ops, CPU, m) {
    m.impl("dcnv3", &dcnv3_cpu);
    m.impl("dcnv3_backward", &dcnv3_backward_cpu);
}

}  // namespace dcnv3
