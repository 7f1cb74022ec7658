#include "ops/picture.hpp"

#include "ops/cuda/functions.hpp"
#include "ops/cuda/kernel.hpp"
#include "ops/cuda/sigmoid.hpp"

// Pictures with channels last. n = height * width * channels of x.
namespace atelier::ops::cuda {
namespace {

constexpr int warps = 8;  // pixels of a block of the norm

__device__ __forceinline__ std::int64_t thread_of_grid() { return static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }

/// A warp a pixel.
template <int N>
__global__ void channel_norm_kernel(std::int64_t pixels, std::int64_t channels, const float* x, const float* gamma, bool silu, float* y) {
    const std::int64_t pixel = static_cast<std::int64_t>(blockIdx.x) * warps + threadIdx.x / warp_size;
    if (pixel >= pixels) return;  // whole warps leave
    const std::int64_t first = threadIdx.x % warp_size * N;
    const float* in = x + pixel * channels;
    float* out = y + pixel * channels;
    float square = 0;
    for (std::int64_t j = first; j < channels; j += warp_size * N) {
        const Pack<N> p = load<N>(in + j);
        for (int k = 0; k < N; ++k) square += p.v[k] * p.v[k];
    }
    const float scale = sqrtf(static_cast<float>(channels)) / fmaxf(sqrtf(warp_sum(square)), 1e-12f);
    for (std::int64_t j = first; j < channels; j += warp_size * N) {
        Pack<N> p = load<N>(in + j);
        const Pack<N> g = load<N>(gamma + j);
        for (int k = 0; k < N; ++k) {
            const float v = p.v[k] * scale * g.v[k];
            p.v[k] = silu ? v * sigmoid(v) : v;
        }
        store(out + j, p);
    }
}

/// N channels of a pixel of x a thread: to the four pixels of y that it becomes.
template <int N>
__global__ void upsample_kernel(std::int64_t n, std::int64_t width, std::int64_t channels, const float* x, float* y) {
    const std::int64_t at = thread_of_grid() * N;
    if (at >= n) return;
    const std::int64_t pixel = at / channels, row = 2 * width * channels;
    float* out = y + pixel / width * 2 * row + pixel % width * 2 * channels + at % channels;
    const Pack<N> p = load<N>(x + at);
    store(out, p);
    store(out + channels, p);
    store(out + row, p);
    store(out + row + channels, p);
}

/// Sizes of a shortcut; width: pixels of a row of y.
struct Shortcut {
    std::int64_t width, in_channels, out_channels, frames, space;
};

/// N channels of a pixel of y a thread; a group of k = (channel, frame, row, column) each, in order. Neighbouring threads read
/// neighbouring channels.
template <int N>
__global__ void average_down_kernel(Shortcut s, std::int64_t n, const float* x, float* y) {
    const std::int64_t at = thread_of_grid() * N;
    if (at >= n) return;
    const std::int64_t square = s.space * s.space, group = s.in_channels * s.frames * square / s.out_channels;
    const std::int64_t pixel = at / s.out_channels, r = pixel / s.width, c = pixel % s.width, x_width = s.width * s.space;
    Pack<N> out = load<N>(y + at);
    for (int i = 0; i < N; ++i) {
        const std::int64_t first = (at % s.out_channels + i) * group;
        float sum = 0;
        for (std::int64_t k = first; k < first + group; ++k) {
            if (k / square % s.frames != s.frames - 1) continue;
            const std::int64_t row = r * s.space + k % square / s.space, column = c * s.space + k % s.space;
            sum += x[(row * x_width + column) * s.in_channels + k / (square * s.frames)];
        }
        out.v[i] += sum / static_cast<float>(group);
    }
    store(y + at, out);
}

/// N channels of a pixel of y a thread.
template <int N>
__global__ void duplicate_up_kernel(Shortcut s, std::int64_t n, const float* x, float* y) {
    const std::int64_t at = thread_of_grid() * N;
    if (at >= n) return;
    const std::int64_t repeats = s.out_channels * s.frames * 4 / s.in_channels;
    const std::int64_t pixel = at / s.out_channels, r = pixel / s.width, c = pixel % s.width;
    const float* in = x + (r / 2 * (s.width / 2) + c / 2) * s.in_channels;
    Pack<N> out = load<N>(y + at);
    for (int i = 0; i < N; ++i)
        out.v[i] += in[(((at % s.out_channels + i) * s.frames + s.frames - 1) * 4 + r % 2 * 2 + c % 2) / repeats];
    store(y + at, out);
}

}  // namespace

// Floor: 2 * 4 n bytes.
void channel_norm(std::int64_t pixels, std::int64_t channels, const float* x, const float* gamma, bool silu, float* y) {
    const Grid grid{ceil_div(pixels, warps)};
    if (in_fours({channels}, {x, gamma, y}))
        launch(channel_norm_kernel<4>, grid, warps * warp_size, 0, pixels, channels, x, gamma, silu, y);
    else
        launch(channel_norm_kernel<1>, grid, warps * warp_size, 0, pixels, channels, x, gamma, silu, y);
}

// Floor: 5 * 4 n bytes (1 read, 4 writes).
void upsample_nearest(std::int64_t height, std::int64_t width, std::int64_t channels, const float* x, float* y) {
    const std::int64_t n = height * width * channels;
    if (in_fours({channels}, {x, y}))
        launch(upsample_kernel<4>, {ceil_div(n, 4 * max_block)}, max_block, 0, n, width, channels, x, y);
    else
        launch(upsample_kernel<1>, {ceil_div(n, max_block)}, max_block, 0, n, width, channels, x, y);
}

// Floor: 4 n + 2 * 4 n_y bytes, n_y the numbers of y.
void add_average_down(std::int64_t height, std::int64_t width, std::int64_t in_channels, std::int64_t out_channels, std::int64_t frames,
                      std::int64_t space, const float* x, float* y) {
    const Shortcut s{width / space, in_channels, out_channels, frames, space};
    const std::int64_t n = height / space * s.width * out_channels;
    if (in_fours({out_channels}, {y}))
        launch(average_down_kernel<4>, {ceil_div(n, 4 * max_block)}, max_block, 0, s, n, x, y);
    else
        launch(average_down_kernel<1>, {ceil_div(n, max_block)}, max_block, 0, s, n, x, y);
}

// Floor: 4 n + 2 * 4 n_y bytes.
void add_duplicate_up(std::int64_t height, std::int64_t width, std::int64_t in_channels, std::int64_t out_channels, std::int64_t frames,
                      const float* x, float* y) {
    const Shortcut s{2 * width, in_channels, out_channels, frames, 2};
    const std::int64_t n = 2 * height * s.width * out_channels;
    if (in_fours({out_channels}, {y}))
        launch(duplicate_up_kernel<4>, {ceil_div(n, 4 * max_block)}, max_block, 0, s, n, x, y);
    else
        launch(duplicate_up_kernel<1>, {ceil_div(n, max_block)}, max_block, 0, s, n, x, y);
}

}  // namespace atelier::ops::cuda
