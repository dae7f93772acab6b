// Launches the kernels of dcnv3_kernels.cuh on the CPU, with any number of lanes for a site.
#include "dcnv3_kernels.cuh"

namespace {

enum Pass { FORWARD, BACKWARD_POINTS, BACKWARD_INPUT };

struct Launch {
    int64_t pass, lanes, rows, seed;  // rows of blocks, which share the images
};

template <typename T, typename S, int VEC>
const char* launch(const Launch& how, const dcnv3::Arguments<T, S>& job) {
    const auto& geometry = job.geometry;
    const int64_t sites = geometry.h.size_out * geometry.w.size_out * geometry.group;
    const int64_t of_block = dcnv3::THREADS / how.lanes;
    const dim3 grid((sites + of_block - 1) / of_block, how.rows);
    return emulator::launch(grid, dcnv3::THREADS, how.seed, [&] {
        if (how.pass == FORWARD) dcnv3::forward_kernel<T, S, VEC>(job);
        if (how.pass == BACKWARD_POINTS) dcnv3::backward_points_kernel<T, S, VEC>(job);
        if (how.pass == BACKWARD_INPUT) dcnv3::backward_input_kernel<T, S, VEC>(job);
    });
}

dcnv3::Geometry geometry_of(const int32_t* numbers, double offset_scale) {
    const auto axis = [](const int32_t* of) -> dcnv3::Axis {
        return {of[0], of[1], of[2], of[3], of[4], of[5]};
    };
    const int32_t* rest = numbers + 13;
    return {numbers[0], axis(numbers + 1), axis(numbers + 7), rest[0], rest[1], rest[2],
            offset_scale, rest[3] != 0};
}

struct Pointers {
    const void *input, *offset, *mask, *grad;
    void *output, *grad_input, *grad_offset, *grad_mask;
};

template <typename T, typename S, int VEC>
const char* run(const Launch& how, const dcnv3::Geometry& geometry, const Pointers& at) {
    return launch<T, S, VEC>(how, {
                                      geometry,
                                      int32_t(how.lanes),
                                      static_cast<const T*>(at.input),
                                      static_cast<const S*>(at.offset),
                                      static_cast<const T*>(at.mask),
                                      static_cast<const T*>(at.grad),
                                      static_cast<T*>(at.output),
                                      static_cast<S*>(at.grad_input),
                                      static_cast<S*>(at.grad_offset),
                                      static_cast<T*>(at.grad_mask),
                                  });
}

}  // namespace

// numbers: batch, of both axes (size, size_out, kernel, stride, pad, dilation), group, depth,
// points, remove_center. Number formats: float64, float32, float16, bfloat16; the first and the last in
// vectors only, to save the compiler's time.
extern "C" const char* dcnv3_on_cpu(int64_t format, int64_t pass, int64_t vectors, int64_t lanes,
                                    int64_t rows, int64_t seed, const int32_t* numbers,
                                    double offset_scale, const void* input, const void* offset,
                                    const void* mask, const void* grad, void* output,
                                    void* grad_input, void* grad_offset, void* grad_mask) {
    const Launch how{pass, lanes, rows, seed};
    const dcnv3::Geometry geometry = geometry_of(numbers, offset_scale);
    const Pointers at{input, offset, mask, grad, output, grad_input, grad_offset, grad_mask};
    if (format == 0) return run<double, double, 2>(how, geometry, at);
    if (format == 1 && vectors) return run<float, float, 4>(how, geometry, at);
    if (format == 1) return run<float, float, 1>(how, geometry, at);
    if (format == 2 && vectors) return run<__half, float, 8>(how, geometry, at);
    if (format == 2) return run<__half, float, 1>(how, geometry, at);
    return run<__nv_bfloat16, float, 8>(how, geometry, at);
}
