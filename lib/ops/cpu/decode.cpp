#include "ops/decode.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "core/parallel.hpp"
#include "ops/cpu/vector_math.hpp"

namespace atelier::ops {
namespace {

using cpu::lanes;

// A block of 4 x 4 results: 16 sums in registers, each in `lanes` interleaved parts, as in cpu::lane_sum.
constexpr std::int64_t block = 4;

template <int rows, int cols>
void multiply(std::int64_t k, const float* x, const float* w, float* y, std::int64_t y_stride) {
    float partial[rows][cols][lanes] = {};
    std::int64_t i = 0;
    for (; i + lanes <= k; i += lanes)
        for (int r = 0; r < rows; ++r)
            for (int c = 0; c < cols; ++c)
                for (int l = 0; l < lanes; ++l)
                    partial[r][c][l] = std::fma(x[r * k + i + l], w[c * k + i + l], partial[r][c][l]);
    for (int l = 0; i + l < k; ++l)
        for (int r = 0; r < rows; ++r)
            for (int c = 0; c < cols; ++c)
                partial[r][c][l] = std::fma(x[r * k + i + l], w[c * k + i + l], partial[r][c][l]);
    for (int r = 0; r < rows; ++r)
        for (int c = 0; c < cols; ++c) {
            float* p = partial[r][c];
            for (int width = lanes / 2; width > 0; width /= 2)
                for (int l = 0; l < width; ++l) p[l] += p[l + width];
            y[r * y_stride + c] = p[0];
        }
}

using Multiply = void (*)(std::int64_t, const float*, const float*, float*, std::int64_t);
template <int rows>
constexpr std::array<Multiply, 4> by_columns{multiply<rows, 1>, multiply<rows, 2>, multiply<rows, 3>, multiply<rows, 4>};
constexpr std::array<std::array<Multiply, 4>, 4> multiplies{by_columns<1>, by_columns<2>, by_columns<3>, by_columns<4>};

}  // namespace

void linear_rows(const Tensor& x, const Tensor& weight, const Tensor& y) {
    const std::int64_t m = x.size(0), k = x.size(1), n = weight.size(0);
    ATELIER_CHECK(weight.size(1) == k && y.size(0) == m && y.size(1) == n, "{} times {} into {}", x.shape().str(),
                  weight.shape().str(), y.shape().str());
    parallel_for((n + block - 1) / block, 16, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t j = begin * block; j < std::min(n, end * block); j += block)
            for (std::int64_t i = 0; i < m; i += block) {
                const std::int64_t rows = std::min(block, m - i), cols = std::min(block, n - j);
                multiplies[static_cast<std::size_t>(rows - 1)][static_cast<std::size_t>(cols - 1)](
                    k, x.f32() + i * k, weight.f32() + j * k, y.f32() + i * n + j, n);
            }
    });
}

void decode_attention(const DecodeAttentionShape& s, const Tensor& q, std::span<const CachedTokens> first,
                      std::span<const CachedTokens> second, const Tensor& out, const Tensor& scores) {
    const std::int64_t rows = q.size(0), d = s.head_dim, width = s.kv_heads * d;
    ATELIER_CHECK(static_cast<std::int64_t>(first.size()) == rows && second.size() == first.size() &&
                      q.size(1) == s.heads * d && scores.elements() >= rows * s.heads * s.most_keys,
                  "attention of {} rows over the tokens of {} and {}", rows, first.size(), second.size());
    parallel_for(rows * s.heads, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t t = begin; t < end; ++t) {
            const std::int64_t row = t / s.heads, head = t % s.heads, key_head = head / (s.heads / s.kv_heads);
            const CachedTokens* parts[] = {&first[static_cast<std::size_t>(row)], &second[static_cast<std::size_t>(row)]};
            const float* query = q.f32() + t * d;
            float* p = scores.f32() + t * s.most_keys;
            std::int64_t keys = 0;
            for (const CachedTokens* part : parts)
                for (std::int64_t j = 0; j < part->length; ++j) {
                    const float* key = part->k + j * width + key_head * d;
                    p[keys++] = s.scale * cpu::lane_sum(d, [=](std::int64_t i) { return query[i] * key[i]; });
                }
            const float top = cpu::lane_max(keys, -INFINITY, [=](std::int64_t j) { return p[j]; });
            for (std::int64_t j = 0; j < keys; ++j) p[j] = cpu::exp_f32(p[j] - top);
            const float inverse = 1.0f / cpu::lane_sum(keys, [=](std::int64_t j) { return p[j]; });
            float* sum = out.f32() + t * d;
            std::fill_n(sum, d, 0.0f);
            std::int64_t at = 0;
            for (const CachedTokens* part : parts)
                for (std::int64_t j = 0; j < part->length; ++j, ++at) {
                    const float* value = part->v + j * width + key_head * d;
                    const float share = p[at] * inverse;
                    for (std::int64_t i = 0; i < d; ++i) sum[i] = std::fma(share, value[i], sum[i]);
                }
        }
    });
}

}  // namespace atelier::ops
