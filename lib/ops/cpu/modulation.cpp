#include "ops/modulation.hpp"

#include <algorithm>
#include <cmath>

#include "core/parallel.hpp"
#include "ops/cpu/vector_math.hpp"

namespace atelier::ops::cpu {
namespace {

constexpr std::int64_t grain_rows = 16, column_block = 64;

/// out[g, j] += sum over the group's rows, in row order, of term(row, j).
template <typename Term>
void group_sums(const ModulationShape& s, float* out, Term term) {
    const std::int64_t blocks = (s.width + column_block - 1) / column_block;
    parallel_for(s.groups * blocks, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t t = begin; t < end; ++t) {
            const std::int64_t g = t / blocks, first = t % blocks * column_block;
            const std::int64_t count = std::min(column_block, s.width - first);
            float sum[column_block] = {};
            for (std::int64_t i = g * s.rows; i < (g + 1) * s.rows; ++i)
                for (std::int64_t j = 0; j < count; ++j) sum[j] += term(i, first + j);
            for (std::int64_t j = 0; j < count; ++j) out[g * s.mod_stride + first + j] += sum[j];
        }
    });
}

// Row i of the operations of the same names.

void norm_row(const ModulationShape& s, std::int64_t i, const float* x, const float* scale, float* y, float* mean, float* inverse_std) {
    const float count = static_cast<float>(s.width);
    const float *in = x + i * s.width, *m = scale + i / s.rows * s.mod_stride;
    float* out = y + i * s.width;
    const float mu = lane_sum(s.width, [=](std::int64_t j) { return in[j]; }) / count;
    const float square = lane_sum(s.width, [=](std::int64_t j) { return (in[j] - mu) * (in[j] - mu); });
    const float inverse = 1.0f / std::sqrt(square / count + s.eps);
    for (std::int64_t j = 0; j < s.width; ++j) out[j] = (in[j] - mu) * inverse * (1.0f + m[j]);
    mean[i] = mu;
    inverse_std[i] = inverse;
}

void gate_row(const ModulationShape& s, std::int64_t i, const float* x, const float* gate, const float* branch, float* y) {
    const float* g = gate + i / s.rows * s.mod_stride;
    const std::int64_t at = i * s.width;
    for (std::int64_t j = 0; j < s.width; ++j) y[at + j] = x[at + j] + g[j] * branch[at + j];
}

}  // namespace

void layer_norm_modulate(const ModulationShape& s, const float* x, const float* scale, OperandOut to, float* mean,
                         float* inverse_std) {
    float* y = to.f32();
    parallel_for(s.groups * s.rows, grain_rows, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) norm_row(s, i, x, scale, y, mean, inverse_std);
    });
}

void layer_norm_modulate_backward(const ModulationShape& s, const float* x, const float* scale, const float* mean,
                                  const float* inverse_std, Operand gradient, float* dx, float* dscale) {
    const std::int64_t w = s.width;
    const float* dy = gradient.f32();
    group_sums(s, dscale, [=](std::int64_t i, std::int64_t j) {
        return dy[i * w + j] * ((x[i * w + j] - mean[i]) * inverse_std[i]);
    });
    parallel_for(s.groups * s.rows, grain_rows, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const float *in = x + i * w, *grad = dy + i * w, *m = scale + i / s.rows * s.mod_stride;
            float* out = dx + i * w;
            const float mu = mean[i], inverse = inverse_std[i];
            const float sum =
                lane_sum(w, [=](std::int64_t j) { return grad[j] * (1.0f + m[j]); }) / static_cast<float>(w);
            const float dot = lane_sum(w, [=](std::int64_t j) {
                                  return grad[j] * (1.0f + m[j]) * ((in[j] - mu) * inverse);
                              }) / static_cast<float>(w);
            for (std::int64_t j = 0; j < w; ++j)
                out[j] += (grad[j] * (1.0f + m[j]) - sum - (in[j] - mu) * inverse * dot) * inverse;
        }
    });
}

void gate_residual(const ModulationShape& s, const float* x, const float* gate, Operand added, float* y) {
    const float* branch = added.f32();
    parallel_for(s.groups * s.rows, grain_rows, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) gate_row(s, i, x, gate, branch, y);
    });
}

void gate_residual_norm_modulate(const ModulationShape& s, const float* x, const float* gate, Operand added, float* y, const float* scale,
                                 OperandOut to, float* mean, float* inverse_std) {
    const float* branch = added.f32();
    float* normed = to.f32();
    parallel_for(s.groups * s.rows, grain_rows, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            gate_row(s, i, x, gate, branch, y);
            norm_row(s, i, y, scale, normed, mean, inverse_std);
        }
    });
}

void gate_residual_backward(const ModulationShape& s, const float* gate, Operand added, const float* dy, OperandOut to, float* dgate) {
    const float* branch = added.f32();
    float* dbranch = to.f32();
    group_sums(s, dgate,
               [=](std::int64_t i, std::int64_t j) { return dy[i * s.width + j] * branch[i * s.width + j]; });
    parallel_for(s.groups * s.rows, grain_rows, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const float* g = gate + i / s.rows * s.mod_stride;
            const std::int64_t at = i * s.width;
            for (std::int64_t j = 0; j < s.width; ++j) dbranch[at + j] = dy[at + j] * g[j];
        }
    });
}

}  // namespace atelier::ops::cpu
