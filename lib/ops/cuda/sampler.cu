#include "ops/cuda/functions.hpp"
#include "ops/cuda/kernel.hpp"

// Transitions x' = on_x x + on_v v + std noise of flow/sampler.hpp with their sums in fp64, and the losses' sums and gradients. n
// numbers a sample; the floors count the numbers of all samples.
namespace atelier::ops::cuda {
namespace {

// Numbers of a sample that one block sums; its sums are added in block order. Part of what makes a sum's bits: never of the device.
constexpr std::int64_t block_numbers = 4096;

/// The mean of one element, the same operations as flow::mean_element.
__device__ __forceinline__ float mean_of(Transition t, float x, float v) { return fmaf(t.on_v, v, t.on_x * x); }

/// Sums term(i) over the numbers of a block of one sample into partial[sample, block].
template <typename Term>
__device__ __forceinline__ void sum_block(std::int64_t n, double* partial, Term term) {
    const std::int64_t sample = blockIdx.y, first = blockIdx.x * block_numbers;
    const std::int64_t last = first + block_numbers < n ? first + block_numbers : n;
    double sum[1] = {0};
    for (std::int64_t i = first + threadIdx.x; i < last; i += blockDim.x) sum[0] += term(sample * n + i);
    block_sum(sum);
    if (threadIdx.x == 0) partial[sample * gridDim.x + blockIdx.x] = sum[0];
}

/// sums[sample]: a warp adds its blocks' sums, lane l those of blocks l, l + 32, … in order, then the lanes' as warp_sum does.
__global__ void finish_kernel(std::int64_t blocks, const double* partial, double* sums) {
    double sum = 0;
    for (std::int64_t b = threadIdx.x; b < blocks; b += warp_size) sum += partial[blockIdx.x * blocks + b];
    sum = warp_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

struct Squares {
    const float *a, *b;
    __device__ __forceinline__ double operator()(std::int64_t i) const {
        const double d = static_cast<double>(a[i] - b[i]);
        return d * d;
    }
};
struct Residuals {
    Transition t;
    const float *x, *v, *x_next;
    __device__ __forceinline__ double operator()(std::int64_t i) const {
        const double residual = static_cast<double>(x_next[i] - mean_of(t, x[i], v[i]));
        return residual * residual;
    }
};
/// Takes the step and then sees x_next as it was stored.
struct StepAndResiduals {
    Transition t;
    const float *x, *v, *noise;
    float* x_next;
    __device__ __forceinline__ double operator()(std::int64_t i) const {
        const float mean = mean_of(t, x[i], v[i]), next = fmaf(t.std, noise[i], mean);
        x_next[i] = next;
        const double residual = static_cast<double>(next - mean);
        return residual * residual;
    }
};
struct Guard {
    Transition t;
    const float *x, *v, *x_next, *noise;
    __device__ __forceinline__ double operator()(std::int64_t i) const {
        const float residual = x_next[i] - mean_of(t, x[i], v[i]);
        return static_cast<double>(noise[i]) * static_cast<double>(fmaf(t.std, noise[i], -residual));
    }
};

template <typename Term>
__global__ void sums_kernel(std::int64_t n, Term term, double* partial) {
    sum_block(n, partial, term);
}

template <typename Term>
void sums(std::int64_t samples, std::int64_t n, Term term, double* out) {
    const std::int64_t blocks = ceil_div(n, block_numbers);
    double* partial = scratch_doubles(samples * blocks);
    launch(sums_kernel<Term>, {blocks, samples}, max_block, 0, n, term, partial);
    launch(finish_kernel, {samples}, warp_size, 0, blocks, partial, out);
}

__global__ void step_kernel(std::int64_t n, Transition t, const float* x, const float* v, const float* noise, float* x_next) {
    const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float mean = mean_of(t, x[i], v[i]);
    x_next[i] = noise != nullptr ? fmaf(t.std, noise[i], mean) : mean;
}

__global__ void residual_gradient_kernel(std::int64_t n, Transition t, float factor, const float* x, const float* v, const float* x_next,
                                         float* d_v) {
    const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) d_v[i] = fmaf(factor, x_next[i] - mean_of(t, x[i], v[i]), d_v[i]);
}

__global__ void difference_gradient_kernel(std::int64_t n, float factor, const float* a, const float* b, float* d) {
    const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) d[i] = fmaf(factor, b != nullptr ? a[i] - b[i] : a[i], d[i]);
}

/// One token: what flow::guide does to it. `factor` of a block that rescales is |c| / |v|, sums in fp64.
__device__ __forceinline__ float guided(float scale, float c, float u) { return u + scale * (c - u); }

__global__ void guide_kernel(std::int64_t channels, float scale, bool rescale, const float* conditional, const float* unconditional, float* out) {
    const std::int64_t row = blockIdx.x * channels;
    float factor = 1;
    if (rescale) {
        double sums[2] = {0, 0};
        for (std::int64_t i = threadIdx.x; i < channels; i += blockDim.x) {
            const double c = conditional[row + i], v = guided(scale, conditional[row + i], unconditional[row + i]);
            sums[0] += c * c;
            sums[1] += v * v;
        }
        block_sum(sums);
        if (sums[1] > 0) factor = static_cast<float>(sqrt(sums[0] / sums[1]));
    }
    for (std::int64_t i = threadIdx.x; i < channels; i += blockDim.x)
        out[row + i] = factor * guided(scale, conditional[row + i], unconditional[row + i]);
}

__global__ void guide_backward_kernel(std::int64_t channels, float scale, bool rescale, const float* conditional, const float* unconditional,
                                      const float* d_out, float* d_conditional, float* d_unconditional) {
    const std::int64_t row = blockIdx.x * channels;
    // out = k v, k = |c| / |v|: d v = k (g - v (v.g)/|v|^2), and c also gets c (v.g) / (|v| |c|).
    float k = 1, along_v = 0, along_c = 0;
    if (rescale) {
        double sums[3] = {0, 0, 0};
        for (std::int64_t i = threadIdx.x; i < channels; i += blockDim.x) {
            const double c = conditional[row + i], v = guided(scale, conditional[row + i], unconditional[row + i]);
            sums[0] += c * c;
            sums[1] += v * v;
            sums[2] += v * static_cast<double>(d_out[row + i]);
        }
        block_sum(sums);
        if (sums[1] > 0) {
            k = static_cast<float>(sqrt(sums[0] / sums[1]));
            along_v = static_cast<float>(sums[2] / sums[1]);
            if (sums[0] > 0) along_c = static_cast<float>(sums[2] / sqrt(sums[1] * sums[0]));
        }
    }
    for (std::int64_t i = threadIdx.x; i < channels; i += blockDim.x) {
        const float c = conditional[row + i], d_v = k * (d_out[row + i] - along_v * guided(scale, c, unconditional[row + i]));
        d_conditional[row + i] += scale * d_v + along_c * c;
        d_unconditional[row + i] += (1 - scale) * d_v;
    }
}

Grid each(std::int64_t n) { return {ceil_div(n, max_block)}; }

}  // namespace

// Floor: 3 * 4 n bytes of n = tokens * channels (what a rescaled token reads twice is in the cache).
void guide(std::int64_t tokens, std::int64_t channels, float scale, bool rescale, const float* conditional, const float* unconditional,
           float* out) {
    launch(guide_kernel, {tokens}, row_threads(channels, 1), 0, channels, scale, rescale, conditional, unconditional, out);
}
// Floor: 7 * 4 n bytes.
void guide_backward(std::int64_t tokens, std::int64_t channels, float scale, bool rescale, const float* conditional,
                    const float* unconditional, const float* d_out, float* d_conditional, float* d_unconditional) {
    launch(guide_backward_kernel, {tokens}, row_threads(channels, 1), 0, channels, scale, rescale, conditional, unconditional, d_out,
           d_conditional, d_unconditional);
}

// Floor: 4 * 4 n bytes with noise and the sum, 3 * 4 n without noise.
void sampler_step(std::int64_t samples, std::int64_t n, Transition t, const float* x, const float* v, const float* noise, float* x_next,
                  double* squares) {
    if (squares == nullptr)
        launch(step_kernel, each(samples * n), max_block, 0, samples * n, t, x, v, noise, x_next);
    else
        sums(samples, n, StepAndResiduals{t, x, v, noise, x_next}, squares);
}

// Floor: 3 * 4 n bytes.
void squared_residuals(std::int64_t samples, std::int64_t n, Transition t, const float* x, const float* v, const float* x_next,
                       double* squares) {
    sums(samples, n, Residuals{t, x, v, x_next}, squares);
}
// Floor: 5 * 4 n bytes.
void residual_gradient(std::int64_t n, Transition t, float factor, const float* x, const float* v, const float* x_next, float* d_v) {
    launch(residual_gradient_kernel, each(n), max_block, 0, n, t, factor, x, v, x_next, d_v);
}

// Floor: 4 * 4 n bytes.
void guard_sums(std::int64_t samples, std::int64_t n, Transition t, const float* x, const float* v, const float* x_next,
                const float* noise, double* out) {
    sums(samples, n, Guard{t, x, v, x_next, noise}, out);
}

// Floor: 2 * 4 n bytes.
void squared_differences(std::int64_t samples, std::int64_t n, const float* a, const float* b, double* squares) {
    sums(samples, n, Squares{a, b}, squares);
}
// Floor: 4 * 4 n bytes, 3 * 4 n without b.
void difference_gradient(std::int64_t n, float factor, const float* a, const float* b, float* d) {
    launch(difference_gradient_kernel, each(n), max_block, 0, n, factor, a, b, d);
}

}  // namespace atelier::ops::cuda
