#include "ops/rope.hpp"

#include <algorithm>
#include <cmath>

#include "core/parallel.hpp"
#include "ops/cpu/vector_math.hpp"

namespace atelier::ops::cpu {
namespace {

// Rows per partial sum of the weight gradients; partial sums are added in block order.
constexpr std::int64_t block_rows = 16;

}  // namespace

void qk_norm_rope(const QkNormRopeShape& s, Operand from, const float* q_weight, const float* k_weight,
                  const float* cosine, const float* sine, OperandOut to, float* inverse_rms) {
    const std::int64_t width = s.heads * s.head_dim, half = s.head_dim / 2;
    const float* in = from.f32();
    float* out = to.f32();
    parallel_for(s.rows, block_rows, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t r = begin; r < end; ++r) {
            const float *c = cosine + r % s.positions * half, *n = sine + r % s.positions * half;
            for (int part = 0; part < 2; ++part) {
                const float* weight = part == 0 ? q_weight : k_weight;
                for (std::int64_t h = 0; h < s.heads; ++h) {
                    const std::int64_t at = r * 3 * width + part * width + h * s.head_dim;
                    const float* x = in + at;
                    float* y = out + at;
                    const float square = lane_sum(s.head_dim, [=](std::int64_t j) { return x[j] * x[j]; });
                    const float inverse = 1.0f / std::sqrt(square / static_cast<float>(s.head_dim) + s.eps);
                    inverse_rms[(r * 2 + part) * s.heads + h] = inverse;
                    for (std::int64_t i = 0; i < half; ++i) {
                        const float a = x[2 * i] * inverse * weight[2 * i];
                        const float b = x[2 * i + 1] * inverse * weight[2 * i + 1];
                        y[2 * i] = a * c[i] - b * n[i];
                        y[2 * i + 1] = a * n[i] + b * c[i];
                    }
                }
            }
            std::copy_n(in + r * 3 * width + 2 * width, width, out + r * 3 * width + 2 * width);
        }
    });
}

std::int64_t qk_norm_rope_workspace(const QkNormRopeShape& s) {
    return (s.rows + block_rows - 1) / block_rows * 2 * s.head_dim;
}

void qk_norm_rope_backward(const QkNormRopeShape& s, Operand from, const float* q_weight, const float* k_weight,
                           const float* cosine, const float* sine, const float* inverse_rms, float* d_out,
                           OperandOut to, float* dq_weight, float* dk_weight, float* workspace) {
    const std::int64_t width = s.heads * s.head_dim, half = s.head_dim / 2, d = s.head_dim;
    const float* in = from.f32();
    float* d_in = to.f32();
    parallel_for(s.rows, block_rows, [&](std::int64_t begin, std::int64_t end) {
        float* partial = workspace + begin / block_rows * 2 * d;
        std::fill_n(partial, 2 * d, 0.0f);
        for (std::int64_t r = begin; r < end; ++r) {
            const float *c = cosine + r % s.positions * half, *n = sine + r % s.positions * half;
            for (int part = 0; part < 2; ++part) {
                const float* weight = part == 0 ? q_weight : k_weight;
                float* dweight = partial + part * d;
                for (std::int64_t h = 0; h < s.heads; ++h) {
                    const std::int64_t at = r * 3 * width + part * width + h * d;
                    const float* x = in + at;
                    float *g = d_out + at, *dx = d_in + at;
                    const float inverse = inverse_rms[(r * 2 + part) * s.heads + h];
                    for (std::int64_t i = 0; i < half; ++i) {  // rotate back
                        const float a = g[2 * i] * c[i] + g[2 * i + 1] * n[i];
                        const float b = g[2 * i + 1] * c[i] - g[2 * i] * n[i];
                        g[2 * i] = a;
                        g[2 * i + 1] = b;
                    }
                    for (std::int64_t j = 0; j < d; ++j) dweight[j] += g[j] * x[j] * inverse;
                    const float dot = lane_sum(d, [=](std::int64_t j) { return g[j] * weight[j] * x[j]; });
                    const float pull = dot * inverse * inverse * inverse / static_cast<float>(d);
                    for (std::int64_t j = 0; j < d; ++j) dx[j] = g[j] * weight[j] * inverse - x[j] * pull;
                }
            }
            const std::int64_t values = r * 3 * width + 2 * width;
            if (d_in != d_out) std::copy_n(d_out + values, width, d_in + values);
        }
    });
    if (dq_weight == nullptr) return;
    for (std::int64_t block = 0; block * block_rows < s.rows; ++block)
        for (std::int64_t j = 0; j < d; ++j) {
            dq_weight[j] += workspace[(block * 2) * d + j];
            dk_weight[j] += workspace[(block * 2 + 1) * d + j];
        }
}

namespace {

/// `direction` 1 rotates, -1 rotates back.
void rotate_halves(std::int64_t rows, std::int64_t heads, std::int64_t head_dim, std::int64_t stride, const float* cosine,
                   const float* sine, float direction, float* x) {
    const std::int64_t half = head_dim / 2;
    parallel_for(rows, block_rows, [=](std::int64_t begin, std::int64_t end) {
        for (std::int64_t r = begin; r < end; ++r)
            for (std::int64_t h = 0; h < heads; ++h) {
                float *a = x + r * stride + h * head_dim, *b = a + half;
                const float *c = cosine + r * half, *s = sine + r * half;
                for (std::int64_t i = 0; i < half; ++i) {
                    const float u = a[i], v = b[i], turn = direction * s[i];
                    a[i] = u * c[i] - v * turn;
                    b[i] = v * c[i] + u * turn;
                }
            }
    });
}

}  // namespace

void rope_half(std::int64_t rows, std::int64_t heads, std::int64_t head_dim, std::int64_t stride, const float* cosine,
               const float* sine, float* x) {
    rotate_halves(rows, heads, head_dim, stride, cosine, sine, 1.0f, x);
}

void rope_half_backward(std::int64_t rows, std::int64_t heads, std::int64_t head_dim, std::int64_t stride,
                        const float* cosine, const float* sine, float* gradient) {
    rotate_halves(rows, heads, head_dim, stride, cosine, sine, -1.0f, gradient);
}

}  // namespace atelier::ops::cpu
