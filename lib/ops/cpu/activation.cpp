#include "ops/activation.hpp"

#include <cmath>
#include <numbers>

#include "core/parallel.hpp"
#include "ops/cpu/vector_math.hpp"

namespace atelier::ops::cpu {
namespace {

constexpr std::int64_t grain = 16384;

template <typename Function>
void each(std::int64_t n, Function f) {
    parallel_for(n, grain, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) f(i);
    });
}

// 0.5 x (1 + tanh u) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3)
constexpr float gelu_a = 1.5957691216057308f, gelu_b = 0.044715f;

}  // namespace

void silu(const float* x, float* y, std::int64_t n) {
    each(n, [=](std::int64_t i) { y[i] = silu_f32(x[i]); });
}
void silu_backward(const float* x, const float* dy, float* dx, std::int64_t n) {
    each(n, [=](std::int64_t i) { dx[i] = dy[i] * silu_slope_f32(x[i]); });
}
void gelu_tanh(const float* x, float* y, std::int64_t n) {
    each(n, [=](std::int64_t i) {
        y[i] = x[i] * sigmoid_f32(gelu_a * (x[i] + gelu_b * x[i] * x[i] * x[i]));
    });
}
void gelu_tanh_backward(const float* x, const float* dy, float* dx, std::int64_t n) {
    each(n, [=](std::int64_t i) {
        const float s = sigmoid_f32(gelu_a * (x[i] + gelu_b * x[i] * x[i] * x[i]));
        const float slope = gelu_a * (1.0f + 3.0f * gelu_b * x[i] * x[i]);
        dx[i] = dy[i] * (s + x[i] * s * (1.0f - s) * slope);
    });
}
void gelu_erf(const float* x, float* y, std::int64_t n) {
    constexpr float root = std::numbers::sqrt2_v<float> / 2;
    each(n, [=](std::int64_t i) { y[i] = 0.5f * x[i] * (1.0f + std::erf(x[i] * root)); });
}
void gelu_erf_backward(const float* x, const float* dy, float* dx, std::int64_t n) {
    constexpr float root = std::numbers::sqrt2_v<float> / 2;
    constexpr float density = 0.3989422804014327f;  // 1 / sqrt(2 pi)
    each(n, [=](std::int64_t i) {
        dx[i] = dy[i] * (0.5f * (1.0f + std::erf(x[i] * root)) +
                         x[i] * density * exp_f32(-0.5f * x[i] * x[i]));
    });
}
void tanh(const float* x, float* y, std::int64_t n) {
    each(n, [=](std::int64_t i) { y[i] = tanh_f32(x[i]); });
}
void tanh_backward(const float* y, const float* dy, float* dx, std::int64_t n) {
    each(n, [=](std::int64_t i) { dx[i] = dy[i] * (1.0f - y[i] * y[i]); });
}
void swiglu(std::int64_t rows, std::int64_t width, Operand gates, Operand values, std::int64_t in_stride, OperandOut to) {
    const float *gate = gates.f32(), *value = values.f32();
    float* y = to.f32();
    parallel_for(rows, 16, [=](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const float *g = gate + i * in_stride, *v = value + i * in_stride;
            float* out = y + i * width;
            for (std::int64_t j = 0; j < width; ++j) out[j] = silu_f32(g[j]) * v[j];
        }
    });
}
void swiglu_backward(std::int64_t rows, std::int64_t width, Operand gates, Operand values, std::int64_t in_stride, Operand gradient,
                     OperandOut to_gate, OperandOut to_value) {
    const float *gate = gates.f32(), *value = values.f32(), *dy = gradient.f32();
    float *dgate = to_gate.f32(), *dvalue = to_value.f32();
    parallel_for(rows, 16, [=](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const float *g = gate + i * in_stride, *v = value + i * in_stride, *d = dy + i * width;
            float *dg = dgate + i * in_stride, *dv = dvalue + i * in_stride;
            for (std::int64_t j = 0; j < width; ++j) {
                const float x = g[j], up = d[j], s = sigmoid_f32(x);
                dg[j] = up * v[j] * s * (1.0f + x * (1.0f - s));
                dv[j] = up * x * s;
            }
        }
    });
}
void add(const float* x, float* y, std::int64_t n) {
    each(n, [=](std::int64_t i) { y[i] += x[i]; });
}

}  // namespace atelier::ops::cpu
