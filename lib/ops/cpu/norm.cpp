#include "ops/norm.hpp"

#include <algorithm>
#include <cmath>

#include "core/error.hpp"
#include "core/parallel.hpp"
#include "ops/cpu/vector_math.hpp"

namespace atelier::ops::cpu {
namespace {

// Rows per partial sum of weight gradients: partial sums are added in block order.
constexpr std::int64_t block_rows = 64;
constexpr std::int64_t max_width = 16384;

/// out[j] += sum over rows of term(row, j), columns in parallel, rows in order.
template <typename Term>
void column_sums(std::int64_t rows, std::int64_t width, float* out, Term term) {
    parallel_for(width, 64, [&](std::int64_t begin, std::int64_t end) {
        float partial[64];
        for (std::int64_t block = 0; block < rows; block += block_rows) {
            std::fill_n(partial, end - begin, 0.0f);
            for (std::int64_t i = block; i < std::min(rows, block + block_rows); ++i)
                for (std::int64_t j = begin; j < end; ++j) partial[j - begin] += term(i, j);
            for (std::int64_t j = begin; j < end; ++j) out[j] += partial[j - begin];
        }
    });
}

}  // namespace

void rms_norm(const RmsNormShape& s, const float* x, const float* weight, float* y, float* inverse_rms) {
    const std::int64_t xs = s.x_stride != 0 ? s.x_stride : s.width, ys = s.y_stride != 0 ? s.y_stride : s.width;
    parallel_for(s.rows, block_rows, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const float* in = x + i * xs;
            float* out = y + i * ys;
            const float square = lane_sum(s.width, [=](std::int64_t j) { return in[j] * in[j]; });
            const float inverse = 1.0f / std::sqrt(square / static_cast<float>(s.width) + s.eps);
            for (std::int64_t j = 0; j < s.width; ++j) out[j] = in[j] * inverse * (s.offset + weight[j]);
            if (inverse_rms != nullptr) inverse_rms[i] = inverse;
        }
    });
}

void rms_norm_backward(const RmsNormShape& s, const float* x, const float* weight, const float* inverse_rms,
                       const float* dy, float* dx, float* dweight) {
    const std::int64_t xs = s.x_stride != 0 ? s.x_stride : s.width, ys = s.y_stride != 0 ? s.y_stride : s.width;
    if (dweight != nullptr)
        column_sums(s.rows, s.width, dweight,
                    [=](std::int64_t i, std::int64_t j) { return dy[i * ys + j] * x[i * xs + j] * inverse_rms[i]; });
    parallel_for(s.rows, block_rows, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const float* in = x + i * xs;
            const float* grad = dy + i * ys;
            float* out = dx + i * xs;
            const float inverse = inverse_rms[i];
            const float dot = lane_sum(
                s.width, [=](std::int64_t j) { return grad[j] * (s.offset + weight[j]) * in[j]; });
            const float pull = dot * inverse * inverse * inverse / static_cast<float>(s.width);
            for (std::int64_t j = 0; j < s.width; ++j)
                out[j] = grad[j] * (s.offset + weight[j]) * inverse - in[j] * pull;
        }
    });
}

void layer_norm(const LayerNormShape& s, const float* x, const float* weight, const float* bias, float* y,
                float* mean, float* inverse_std) {
    const float count = static_cast<float>(s.width);
    parallel_for(s.rows, block_rows, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const float* in = x + i * s.width;
            float* out = y + i * s.width;
            const float m = lane_sum(s.width, [=](std::int64_t j) { return in[j]; }) / count;
            const float square =
                lane_sum(s.width, [=](std::int64_t j) { return (in[j] - m) * (in[j] - m); });
            const float inverse = 1.0f / std::sqrt(square / count + s.eps);
            for (std::int64_t j = 0; j < s.width; ++j) out[j] = (in[j] - m) * inverse;
            if (weight != nullptr)
                for (std::int64_t j = 0; j < s.width; ++j) out[j] *= weight[j];
            if (bias != nullptr)
                for (std::int64_t j = 0; j < s.width; ++j) out[j] += bias[j];
            if (mean != nullptr) mean[i] = m;
            if (inverse_std != nullptr) inverse_std[i] = inverse;
        }
    });
}

void layer_norm_backward(const LayerNormShape& s, const float* x, const float* weight, const float* mean,
                         const float* inverse_std, const float* dy, float* dx, bool accumulate, float* dweight,
                         float* dbias) {
    ATELIER_CHECK(s.width <= max_width, "LayerNorm of width {} (at most {})", s.width, max_width);
    const std::int64_t w = s.width;
    if (dweight != nullptr)
        column_sums(s.rows, w, dweight, [=](std::int64_t i, std::int64_t j) {
            return dy[i * w + j] * (x[i * w + j] - mean[i]) * inverse_std[i];
        });
    if (dbias != nullptr)
        column_sums(s.rows, w, dbias, [=](std::int64_t i, std::int64_t j) { return dy[i * w + j]; });
    parallel_for(s.rows, block_rows, [&](std::int64_t begin, std::int64_t end) {
        float g[max_width];
        for (std::int64_t i = begin; i < end; ++i) {
            const float* in = x + i * w;
            const float* grad = dy + i * w;
            float* out = dx + i * w;
            const float m = mean[i], inverse = inverse_std[i];
            for (std::int64_t j = 0; j < w; ++j) g[j] = weight != nullptr ? grad[j] * weight[j] : grad[j];
            const float sum = lane_sum(w, [&](std::int64_t j) { return g[j]; }) / static_cast<float>(w);
            const float dot =
                lane_sum(w, [&](std::int64_t j) { return g[j] * (in[j] - m) * inverse; }) /
                static_cast<float>(w);
            for (std::int64_t j = 0; j < w; ++j) {
                const float value = (g[j] - sum - (in[j] - m) * inverse * dot) * inverse;
                out[j] = accumulate ? out[j] + value : value;
            }
        }
    });
}

}  // namespace atelier::ops::cpu
