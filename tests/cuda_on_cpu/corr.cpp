// Launches the kernels of corr_kernels.cuh on the CPU.
#include "corr_kernels.cuh"

namespace {

enum Pass { FORWARD, GRAD_FMAP1, GRAD_FMAP1_COORDS, GRAD_FMAP2 };

struct Given {
    int64_t pass, seed, batch;
    corr::Window window;
    double scale;
    int64_t channels, queries, levels;
    const int32_t* sizes;  // (height, width) of each level
    const void *fmap1, *coords, *grad;
    const void* const* fmap2;
    void *output, *grad1, *grad_coords;
    void* const* grad2;
};

template <typename T>
corr::Call<T> call_of(const Given& given) {
    using S = corr::Sum<T>;
    corr::Call<T> call{};
    call.window = given.window;
    call.channels = given.channels;
    call.queries = given.queries;
    call.levels = given.levels;
    call.scale = given.scale;
    for (int64_t l = 0; l < given.levels; l++)
        call.level[l] = {static_cast<const T*>(given.fmap2[l]), static_cast<S*>(given.grad2[l]),
                         given.sizes[2 * l], given.sizes[2 * l + 1]};
    call.fmap1 = static_cast<const T*>(given.fmap1);
    call.coords = static_cast<const S*>(given.coords);
    call.grad = static_cast<const S*>(given.grad);
    call.output = static_cast<S*>(given.output);
    call.grad1 = static_cast<T*>(given.grad1);
    call.grad_coords = static_cast<S*>(given.grad_coords);
    return call;
}

template <typename T, int V>
const char* launch(const Given& given) {
    const corr::Call<T> call = call_of<T>(given);
    const unsigned strips = (given.queries + corr::QUERIES - 1) / corr::QUERIES * given.batch;
    const unsigned parts = given.levels * corr::tiles(given.window) * corr::tiles(given.window);
    const bool each = given.pass == FORWARD || given.pass == GRAD_FMAP2;
    return emulator::launch(dim3(strips, each ? parts : 1), corr::THREADS, given.seed, [&] {
        if (given.pass == FORWARD) corr::corr_forward<T, V>(call);
        if (given.pass == GRAD_FMAP1) corr::corr_gather<T, V, 1>(call);
        if (given.pass == GRAD_FMAP1_COORDS) corr::corr_gather<T, V, 3>(call);
        if (given.pass == GRAD_FMAP2) corr::corr_scatter<T, V>(call);
    });
}

}  // namespace

// numbers: batch, radius, window stride, sparse, channels, queries, levels, then height and width
// of each level; addresses: maps of all levels, then their gradients. Number formats as in dcnv3.cpp.
extern "C" const char* corr_on_cpu(int64_t format, int64_t pass, int64_t vectors, int64_t seed,
                                   const int32_t* numbers, double scale, const void* fmap1,
                                   const int64_t* addresses, const void* coords, const void* grad,
                                   void* output, void* grad1, void* grad_coords) {
    const auto maps = reinterpret_cast<void* const*>(addresses);
    const corr::Window window{numbers[1], numbers[2], numbers[3] != 0};
    const Given given{pass,       seed,   numbers[0], window, scale,
                      numbers[4], numbers[5], numbers[6], numbers + 7, fmap1,
                      coords,     grad,   maps,       output, grad1,
                      grad_coords, maps + numbers[6]};
    if (format == 0) return launch<double, 2>(given);
    if (format == 1 && vectors) return launch<float, 4>(given);
    if (format == 1) return launch<float, 1>(given);
    if (format == 2 && vectors) return launch<__half, 8>(given);
    if (format == 2) return launch<__half, 1>(given);
    return launch<__nv_bfloat16, 8>(given);
}
