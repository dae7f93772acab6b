// Correlation lookup on the CPU; float16 and bfloat16 are computed in float.
//
// Every number is added up in an order that does not depend on the number of threads: the gradient
// of fmap2 is shared out by images, levels and channels, all else by strips of queries.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "corr_checks.h"
#include "corr_strips.h"

namespace corr {
namespace {

CLONES void run_forward(const Job<float>& job, int64_t begin, int64_t end) {
    forward_strips(job, begin, end);
}

CLONES void run_forward(const Job<double>& job, int64_t begin, int64_t end) {
    forward_strips(job, begin, end);
}

CLONES void run_backward(const Job<float>& job, int64_t begin, int64_t end) {
    job.grad_coords ? backward_strips<3>(job, begin, end) : backward_strips<1>(job, begin, end);
}

CLONES void run_backward(const Job<double>& job, int64_t begin, int64_t end) {
    job.grad_coords ? backward_strips<3>(job, begin, end) : backward_strips<1>(job, begin, end);
}

CLONES void run_scatter(const Job<float>& job, const Share& share) { scatter_share(job, share); }

CLONES void run_scatter(const Job<double>& job, const Share& share) { scatter_share(job, share); }

// Small enough for all threads to have some, large enough for vectors; no sum depends on it.
template <typename T>
std::vector<Share> shares(const Job<T>& job) {
    const int64_t maps = job.batch * static_cast<int64_t>(job.levels.size());
    int64_t width = 64;
    while (width > STRIP && maps * job.channels < 2 * width * at::get_num_threads()) width /= 2;
    std::vector<Share> shares;
    for (int64_t image = 0; image < job.batch; ++image) {
        for (size_t level = 0; level < job.levels.size(); ++level) {
            for (int64_t c = 0; c < job.channels; c += width) {
                shares.push_back({image, level, c, std::min(c + width, job.channels)});
            }
        }
    }
    return shares;
}

// ---- the operators

// As the loops want a map: in the type of the sums, pixel by pixel.
Tensor prepared(const Tensor& fmap) { return pixel_by_pixel(fmap.to(wide(fmap))); }

std::vector<Tensor> prepared(TensorList fmaps) {
    std::vector<Tensor> maps;
    for (const Tensor& fmap : fmaps) maps.push_back(prepared(fmap));
    return maps;
}

template <typename T>
Job<T> job_of(const Window& window, const Tensor& fmap1, const std::vector<Tensor>& fmap2,
              const Tensor& coords, double scale) {
    Job<T> job{.window = window,
               .batch = fmap1.size(0),
               .channels = fmap1.size(1),
               .queries = fmap1.size(2) * fmap1.size(3),
               .scale = static_cast<T>(scale),
               .fmap1 = fmap1.const_data_ptr<T>(),
               .coords = coords.const_data_ptr<T>()};
    T shrink = 1;
    for (const Tensor& map : fmap2) {
        job.levels.push_back({map.const_data_ptr<T>(), nullptr, static_cast<int32_t>(map.size(2)),
                              static_cast<int32_t>(map.size(3)), shrink});
        shrink /= 2;
    }
    return job;
}

template <typename T>
void forward_as(Job<T> job, Tensor& output) {
    job.output = output.mutable_data_ptr<T>();
    at::parallel_for(0, job.batch * job.strips(), 1, [&](int64_t begin, int64_t end) {
        run_forward(job, begin, end);
    });
}

template <typename T>
void backward_as(Job<T> job, const Tensor& grad, std::array<bool, 3> needs, Tensor& grad1,
                 std::vector<Tensor>& grad2, Tensor& grad_coords) {
    job.grad = grad.const_data_ptr<T>();
    job.grad1 = needs[0] ? grad1.mutable_data_ptr<T>() : nullptr;
    job.grad_coords = needs[2] ? grad_coords.mutable_data_ptr<T>() : nullptr;
    if (needs[0] || needs[2]) {
        at::parallel_for(0, job.batch * job.strips(), 1, [&](int64_t begin, int64_t end) {
            run_backward(job, begin, end);
        });
    }
    if (!needs[1]) return;
    for (size_t level = 0; level < grad2.size(); ++level) {
        job.levels[level].grad = grad2[level].template mutable_data_ptr<T>();
    }
    const std::vector<Share> all = shares(job);
    at::parallel_for(0, all.size(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t index = begin; index < end; ++index) run_scatter(job, all[index]);
    });
}

Tensor corr_lookup_cpu(const Tensor& fmap1, TensorList fmap2, const Tensor& coords, int64_t radius,
                       double scale, int64_t window_stride, bool sparse) {
    const Window window = check(fmap1, fmap2, coords, radius, window_stride, sparse);
    const Tensor queries = prepared(fmap1), places = coords.contiguous();
    const std::vector<Tensor> maps = prepared(fmap2);
    Tensor output = coords.new_empty(output_sizes(fmap1, fmap2, window));
    if (wide(fmap1) == at::kDouble) {
        forward_as(job_of<double>(window, queries, maps, places, scale), output);
    } else {
        forward_as(job_of<float>(window, queries, maps, places, scale), output);
    }
    return output;
}

Gradients corr_lookup_backward_cpu(const Tensor& grad, const Tensor& fmap1, TensorList fmap2,
                                   const Tensor& coords, int64_t radius, double scale,
                                   int64_t window_stride, bool sparse,
                                   std::array<bool, 3> needs) {
    const Window window = check(fmap1, fmap2, coords, radius, window_stride, sparse);
    check_grad(grad, fmap1, fmap2, window);
    const Tensor queries = prepared(fmap1), places = coords.contiguous(), given = grad.contiguous();
    const std::vector<Tensor> maps = prepared(fmap2);
    Tensor grad1 = needs[0] ? empty_like(fmap1, wide(fmap1)) : fmap1.new_empty(0);
    Tensor grad_coords = coords.new_empty(needs[2] ? coords.sizes() : IntArrayRef{0});
    std::vector<Tensor> grad2;
    for (const Tensor& fmap : fmap2) {
        grad2.push_back(needs[1] ? zeros_like(fmap, wide(fmap)) : fmap.new_empty(0));
    }
    if (wide(fmap1) == at::kDouble) {
        backward_as(job_of<double>(window, queries, maps, places, scale), given, needs, grad1,
                    grad2, grad_coords);
    } else {
        backward_as(job_of<float>(window, queries, maps, places, scale), given, needs, grad1,
                    grad2, grad_coords);
    }
    for (Tensor& map : grad2) map = map.to(fmap1.scalar_type());
    return {grad1.to(fmap1.scalar_type()), grad2, grad_coords};
}

}  // namespace

TORCH_LIBRARY_IMPL(cuda_ops, CPU, m) {
    m.impl("corr_lookup", &corr_lookup_cpu);
    m.impl("corr_lookup_backward", &corr_lookup_backward_cpu);
}

}  // namespace corr
