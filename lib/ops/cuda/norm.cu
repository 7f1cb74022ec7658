#include "ops/norm.hpp"

#include "ops/cuda/columns.hpp"
#include "ops/cuda/functions.hpp"
#include "ops/cuda/kernel.hpp"
#include "ops/cuda/row_moments.hpp"

// n = rows * width numbers.
namespace atelier::ops::cuda {
namespace {

struct Strides {
    std::int64_t x, y;
    explicit Strides(const RmsNormShape& s) : x(s.x_stride != 0 ? s.x_stride : s.width), y(s.y_stride != 0 ? s.y_stride : s.width) {}
};

template <int N>
__global__ void rms_norm_kernel(RmsNormShape s, Strides stride, const float* x, const float* weight, float* y, float* inverse_rms) {
    const std::int64_t row = blockIdx.x;
    const float* in = x + row * stride.x;
    float square[1] = {0};
    for (std::int64_t j = threadIdx.x * N; j < s.width; j += blockDim.x * N) {
        const Pack<N> p = load<N>(in + j);
        for (int k = 0; k < N; ++k) square[0] += p.v[k] * p.v[k];
    }
    block_sum(square);
    const float inverse = 1.0f / sqrtf(square[0] / static_cast<float>(s.width) + s.eps);
    for (std::int64_t j = threadIdx.x * N; j < s.width; j += blockDim.x * N) {
        Pack<N> p = load<N>(in + j);
        const Pack<N> w = load<N>(weight + j);
        for (int k = 0; k < N; ++k) p.v[k] = p.v[k] * inverse * (s.offset + w.v[k]);
        store(y + row * stride.y + j, p);
    }
    if (inverse_rms != nullptr && threadIdx.x == 0) inverse_rms[row] = inverse;
}

/// A chunk of rows a block; `partial` null: no gradient of the weights.
template <int N>
__global__ void rms_norm_backward_kernel(RmsNormShape s, Strides stride, std::int64_t chunk_rows, const float* x, const float* weight,
                                         const float* inverse_rms, const float* dy, float* dx, float* partial) {
    ATELIER_DYNAMIC_SHARED(float, dweight);
    const std::int64_t first = blockIdx.x * chunk_rows, last = first + chunk_rows < s.rows ? first + chunk_rows : s.rows;
    for (std::int64_t j = threadIdx.x * N; j < s.width; j += blockDim.x * N)
        for (int k = 0; k < N; ++k) dweight[j + k] = 0;
    for (std::int64_t i = first; i < last; ++i) {
        const float *in = x + i * stride.x, *grad = dy + i * stride.y;
        const float inverse = inverse_rms[i];
        float dot[1] = {0};
        for (std::int64_t j = threadIdx.x * N; j < s.width; j += blockDim.x * N) {
            const Pack<N> p = load<N>(in + j), g = load<N>(grad + j), w = load<N>(weight + j);
            for (int k = 0; k < N; ++k) {
                dot[0] += g.v[k] * (s.offset + w.v[k]) * p.v[k];
                dweight[j + k] += g.v[k] * p.v[k] * inverse;
            }
        }
        block_sum(dot);
        const float pull = dot[0] * inverse * inverse * inverse / static_cast<float>(s.width);
        for (std::int64_t j = threadIdx.x * N; j < s.width; j += blockDim.x * N) {
            const Pack<N> p = load<N>(in + j), w = load<N>(weight + j);
            Pack<N> g = load<N>(grad + j);
            for (int k = 0; k < N; ++k) g.v[k] = g.v[k] * (s.offset + w.v[k]) * inverse - p.v[k] * pull;
            store(dx + i * stride.x + j, g);
        }
    }
    if (partial == nullptr) return;
    float* mine = partial + blockIdx.x * s.width;
    for (std::int64_t j = threadIdx.x * N; j < s.width; j += blockDim.x * N)
        for (int k = 0; k < N; ++k) mine[j + k] = dweight[j + k];
}

template <int N>
__global__ void layer_norm_kernel(LayerNormShape s, const float* x, const float* weight, const float* bias, float* y, float* mean,
                                  float* inverse_std) {
    const std::int64_t row = blockIdx.x;
    const Row<N, 0> numbers(x + row * s.width, s.width);
    const RowMoments moments = numbers.moments(s.eps);
    numbers.each([&](std::int64_t j, Pack<N> p) {
        for (int k = 0; k < N; ++k) {
            float v = (p.v[k] - moments.mean) * moments.inverse_std;
            if (weight != nullptr) v *= weight[j + k];
            if (bias != nullptr) v += bias[j + k];
            p.v[k] = v;
        }
        store(y + row * s.width + j, p);
    });
    if (threadIdx.x == 0) {
        if (mean != nullptr) mean[row] = moments.mean;
        if (inverse_std != nullptr) inverse_std[row] = moments.inverse_std;
    }
}

/// A chunk of rows a block; `partial` [2, chunks, width]: gradients of weight and bias.
template <int N>
__global__ void layer_norm_backward_kernel(LayerNormShape s, std::int64_t chunk_rows, const float* x, const float* weight,
                                           const float* mean, const float* inverse_std, const float* dy, float* dx, bool accumulate,
                                           float* partial) {
    ATELIER_DYNAMIC_SHARED(float, sums_of_columns);  // [2, width] at widths up to max_row / 2
    float *dweight = sums_of_columns, *dbias = sums_of_columns + s.width;
    const std::int64_t first = blockIdx.x * chunk_rows, last = first + chunk_rows < s.rows ? first + chunk_rows : s.rows;
    const float count = static_cast<float>(s.width);
    for (std::int64_t j = threadIdx.x * N; j < s.width; j += blockDim.x * N)
        for (int k = 0; k < N; ++k) dweight[j + k] = dbias[j + k] = 0;
    for (std::int64_t i = first; i < last; ++i) {
        const std::int64_t at = i * s.width;
        const float mu = mean[i], inverse = inverse_std[i];
        float sums[2] = {0, 0};
        for (std::int64_t j = threadIdx.x * N; j < s.width; j += blockDim.x * N) {
            const Pack<N> p = load<N>(x + at + j), g = load<N>(dy + at + j);
            for (int k = 0; k < N; ++k) {
                const float normed = (p.v[k] - mu) * inverse, d = weight != nullptr ? g.v[k] * weight[j + k] : g.v[k];
                dweight[j + k] += g.v[k] * normed;
                dbias[j + k] += g.v[k];
                sums[0] += d;
                sums[1] += d * normed;
            }
        }
        block_sum(sums);
        const float sum = sums[0] / count, dot = sums[1] / count;
        for (std::int64_t j = threadIdx.x * N; j < s.width; j += blockDim.x * N) {
            const Pack<N> p = load<N>(x + at + j), g = load<N>(dy + at + j);
            Pack<N> out = accumulate ? load<N>(dx + at + j) : Pack<N>{};
            for (int k = 0; k < N; ++k) {
                const float d = weight != nullptr ? g.v[k] * weight[j + k] : g.v[k];
                const float value = (d - sum - (p.v[k] - mu) * inverse * dot) * inverse;
                out.v[k] = accumulate ? out.v[k] + value : value;
            }
            store(dx + at + j, out);
        }
    }
    float *weights_out = partial + blockIdx.x * s.width, *bias_out = partial + (gridDim.x + blockIdx.x) * s.width;
    for (std::int64_t j = threadIdx.x * N; j < s.width; j += blockDim.x * N)
        for (int k = 0; k < N; ++k) {
            weights_out[j + k] = dweight[j + k];
            bias_out[j + k] = dbias[j + k];
        }
}

}  // namespace

// Floor: 2 * 4 n bytes.
void rms_norm(const RmsNormShape& s, const float* x, const float* weight, float* y, float* inverse_rms) {
    const Strides stride(s);
    if (in_fours({s.width, stride.x, stride.y}, {x, weight, y}))
        launch(rms_norm_kernel<4>, {s.rows}, row_threads(s.width, 4), 0, s, stride, x, weight, y, inverse_rms);
    else
        launch(rms_norm_kernel<1>, {s.rows}, row_threads(s.width, 1), 0, s, stride, x, weight, y, inverse_rms);
}

// Floor: 3 * 4 n bytes.
void rms_norm_backward(const RmsNormShape& s, const float* x, const float* weight, const float* inverse_rms, const float* dy, float* dx,
                       float* dweight) {
    ATELIER_CHECK(s.width <= max_row, "the gradient of an RMS norm over rows of {} numbers (at most {})", s.width, max_row);
    const Strides stride(s);
    const Chunks chunks(1, s.rows);
    float* partial = dweight == nullptr ? nullptr : scratch_floats(chunks.count * s.width);
    const std::size_t shared = static_cast<std::size_t>(s.width) * sizeof(float);
    if (in_fours({s.width, stride.x, stride.y}, {x, weight, dy, dx}))
        launch(rms_norm_backward_kernel<4>, {chunks.count}, row_threads(s.width, 4), shared, s, stride, chunks.rows, x, weight, inverse_rms,
               dy, dx, partial);
    else
        launch(rms_norm_backward_kernel<1>, {chunks.count}, row_threads(s.width, 1), shared, s, stride, chunks.rows, x, weight, inverse_rms,
               dy, dx, partial);
    if (dweight != nullptr) finish_columns(1, chunks.count, s.width, 0, partial, dweight);
}

// Floor: 2 * 4 n bytes.
void layer_norm(const LayerNormShape& s, const float* x, const float* weight, const float* bias, float* y, float* mean,
                float* inverse_std) {
    if (in_fours({s.width}, {x, y}))
        launch(layer_norm_kernel<4>, {s.rows}, row_threads(s.width, 4), 0, s, x, weight, bias, y, mean, inverse_std);
    else
        launch(layer_norm_kernel<1>, {s.rows}, row_threads(s.width, 1), 0, s, x, weight, bias, y, mean, inverse_std);
}

// Floor: 3 * 4 n bytes, 4 * 4 n where dx is added to.
void layer_norm_backward(const LayerNormShape& s, const float* x, const float* weight, const float* mean, const float* inverse_std,
                         const float* dy, float* dx, bool accumulate, float* dweight, float* dbias) {
    ATELIER_CHECK(s.width <= max_row / 2, "the gradient of a LayerNorm over rows of {} numbers (at most {})", s.width, max_row / 2);
    const Chunks chunks(1, s.rows);
    float* partial = scratch_floats(2 * chunks.count * s.width);
    const std::size_t shared = 2 * static_cast<std::size_t>(s.width) * sizeof(float);
    if (in_fours({s.width}, {x, dy, dx}))
        launch(layer_norm_backward_kernel<4>, {chunks.count}, row_threads(s.width, 4), shared, s, chunks.rows, x, weight, mean, inverse_std,
               dy, dx, accumulate, partial);
    else
        launch(layer_norm_backward_kernel<1>, {chunks.count}, row_threads(s.width, 1), shared, s, chunks.rows, x, weight, mean, inverse_std,
               dy, dx, accumulate, partial);
    if (dweight != nullptr) finish_columns(1, chunks.count, s.width, 0, partial, dweight);
    if (dbias != nullptr) finish_columns(1, chunks.count, s.width, 0, partial + chunks.count * s.width, dbias);
}

}  // namespace atelier::ops::cuda
