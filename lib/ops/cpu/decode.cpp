#include "ops/decode.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>
#if defined(__AVX512F__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#include <immintrin.h>
#define ATELIER_AVX512_ROWS
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define ATELIER_AVX2_ROWS
#endif

#include "core/parallel.hpp"
#include "ops/cpu/vector_math.hpp"

namespace atelier::ops::cpu {
namespace {

// Blocks of results: each a sum in `lanes` interleaved parts, as in lane_sum, kept in registers. A result's bits depend neither on
// the block's size nor on whether the compiler or intrinsics made it.
#if defined(ATELIER_AVX512_ROWS)

static_assert(lanes == 16);
constexpr std::int64_t block_rows = 4, block_cols = 4;

// Halves of the tree's sums side by side, of twice as many results each time: p[l] + p[l + 8], + 4, + 2, + 1.
__m512 add_8(__m512 a, __m512 b) {
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}
__m512 add_4(__m512 a, __m512 b) {
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
}
__m512 add_2(__m512 a, __m512 b) {  // and add_1: within quarters, one quarter a row
    return __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
           __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
}
__m512 add_1(__m512 a, __m512 b) {
    return __builtin_shufflevector(a, b, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30) +
           __builtin_shufflevector(a, b, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31);
}

template <int rows, int cols>
void multiply(std::int64_t k, const float* x, std::int64_t x_stride, const float* w, float* y, std::int64_t y_stride) {
    __m512 sum[16];  // of row r and column c at 4 c + r; those that are not asked for stay zero
    for (__m512& s : sum) s = _mm512_setzero_ps();
    std::int64_t i = 0;
    for (; i + lanes <= k; i += lanes) {
        __m512 a[rows];
        for (int r = 0; r < rows; ++r) a[r] = _mm512_loadu_ps(x + r * x_stride + i);
        for (int c = 0; c < cols; ++c) {
            const __m512 b = _mm512_loadu_ps(w + c * k + i);
            for (int r = 0; r < rows; ++r) sum[4 * c + r] = _mm512_fmadd_ps(a[r], b, sum[4 * c + r]);
        }
    }
    if (i < k) {
        const auto left = static_cast<__mmask16>((1u << (k - i)) - 1);
        for (int r = 0; r < rows; ++r)
            for (int c = 0; c < cols; ++c)
                sum[4 * c + r] = _mm512_mask3_fmadd_ps(_mm512_maskz_loadu_ps(left, x + r * x_stride + i), _mm512_maskz_loadu_ps(left, w + c * k + i),
                                                       sum[4 * c + r], left);
    }
    __m512 column[4];  // quarter r: what is left of row r in this column
    for (int c = 0; c < 4; ++c)
        column[c] = c < cols ? add_4(add_8(sum[4 * c], sum[4 * c + 1]), add_8(sum[4 * c + 2], sum[4 * c + 3])) : _mm512_setzero_ps();
    const __m512 sums = add_1(add_2(column[0], column[1]), add_2(column[2], column[3]));
    alignas(64) float by_row[4][4];
    _mm512_store_ps(by_row[0], sums);
    for (int r = 0; r < rows; ++r) std::copy_n(by_row[r], cols, y + r * y_stride);
}

#elif defined(ATELIER_AVX2_ROWS)

static_assert(lanes == 16);
// Sixteen registers hold the sums of 4 x 3 results in eight lanes: the other eight go in a second pass.
constexpr std::int64_t block_rows = 4, block_cols = 3;

template <int rows, int cols>
void multiply(std::int64_t k, const float* x, std::int64_t x_stride, const float* w, float* y, std::int64_t y_stride) {
    const std::int64_t whole = k / lanes * lanes;
    __m256 half[2][rows][cols];
    for (int part = 0; part < 2; ++part) {
        __m256 sum[rows][cols];
        for (int r = 0; r < rows; ++r)
            for (int c = 0; c < cols; ++c) sum[r][c] = _mm256_setzero_ps();
        for (std::int64_t i = part * 8; i < whole; i += lanes) {
            __m256 a[rows];
            for (int r = 0; r < rows; ++r) a[r] = _mm256_loadu_ps(x + r * x_stride + i);
            for (int c = 0; c < cols; ++c) {
                const __m256 b = _mm256_loadu_ps(w + c * k + i);
                for (int r = 0; r < rows; ++r) sum[r][c] = _mm256_fmadd_ps(a[r], b, sum[r][c]);
            }
        }
        if (const std::int64_t first = whole + part * 8; first < k) {
            const auto left = static_cast<int>(std::min<std::int64_t>(8, k - first));
            const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(left), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
            for (int r = 0; r < rows; ++r)
                for (int c = 0; c < cols; ++c)
                    sum[r][c] = _mm256_fmadd_ps(_mm256_maskload_ps(x + r * x_stride + first, mask),
                                                _mm256_maskload_ps(w + c * k + first, mask), sum[r][c]);
        }
        for (int r = 0; r < rows; ++r)
            for (int c = 0; c < cols; ++c) half[part][r][c] = sum[r][c];
    }
    // The pairwise tree of four rows at once.
    for (int c = 0; c < cols; ++c) {
        __m128 quarter[4] = {_mm_setzero_ps(), _mm_setzero_ps(), _mm_setzero_ps(), _mm_setzero_ps()};
        for (int r = 0; r < rows; ++r) {
            const __m256 eight = _mm256_add_ps(half[0][r][c], half[1][r][c]);
            quarter[r] = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        }
        _MM_TRANSPOSE4_PS(quarter[0], quarter[1], quarter[2], quarter[3]);
        alignas(16) float sums[4];
        _mm_store_ps(sums, _mm_add_ps(_mm_add_ps(quarter[0], quarter[2]), _mm_add_ps(quarter[1], quarter[3])));
        for (int r = 0; r < rows; ++r) y[r * y_stride + c] = sums[r];
    }
}

#else

constexpr std::int64_t block_rows = 4, block_cols = 4;

template <int rows, int cols>
void multiply(std::int64_t k, const float* x, std::int64_t x_stride, const float* w, float* y, std::int64_t y_stride) {
    float partial[rows][cols][lanes] = {};
    std::int64_t i = 0;
    for (; i + lanes <= k; i += lanes)
        for (int r = 0; r < rows; ++r)
            for (int c = 0; c < cols; ++c)
                for (int l = 0; l < lanes; ++l)
                    partial[r][c][l] = std::fma(x[r * x_stride + i + l], w[c * k + i + l], partial[r][c][l]);
    for (int l = 0; i + l < k; ++l)
        for (int r = 0; r < rows; ++r)
            for (int c = 0; c < cols; ++c)
                partial[r][c][l] = std::fma(x[r * x_stride + i + l], w[c * k + i + l], partial[r][c][l]);
    for (int r = 0; r < rows; ++r)
        for (int c = 0; c < cols; ++c) {
            float* p = partial[r][c];
            for (int width = lanes / 2; width > 0; width /= 2)
                for (int l = 0; l < width; ++l) p[l] += p[l + width];
            y[r * y_stride + c] = p[0];
        }
}

#endif

/// y[r, c] = sum over i < k of x[r, i] w[c, i]; x and y with the strides of their rows, w packed.
using Multiply = void (*)(std::int64_t k, const float* x, std::int64_t x_stride, const float* w, float* y, std::int64_t y_stride);
template <int rows>
constexpr auto by_columns = []<int... c>(std::integer_sequence<int, c...>) {
    return std::array<Multiply, sizeof...(c)>{multiply<rows, c + 1>...};
}(std::make_integer_sequence<int, block_cols>());
constexpr std::array<std::array<Multiply, block_cols>, block_rows> multiplies{by_columns<1>, by_columns<2>, by_columns<3>, by_columns<4>};

/// out[i] = sum over tokens of shares[token] * values[token, i], the first part's tokens before the second's; `width` numbers in registers.
template <int width>
void weigh_values(const std::array<CachedTokens, 2>& parts, const float* shares, std::int64_t stride, float* out) {
    float sum[width] = {};
    for (const CachedTokens& part : parts)
        for (std::int64_t j = 0; j < part.length; ++j, ++shares)
            for (int i = 0; i < width; ++i) sum[i] = std::fma(*shares, part.v[j * stride + i], sum[i]);
    std::copy_n(sum, width, out);
}

}  // namespace

void linear_rows(const Tensor& x, const Tensor& weight, const Tensor& y) {
    const std::int64_t m = x.size(0), k = x.size(1), n = weight.size(0);
    ATELIER_CHECK(weight.size(1) == k && y.size(0) == m && y.size(1) == n, "{} times {} into {}", x.shape().str(),
                  weight.shape().str(), y.shape().str());
    parallel_for((n + block_cols - 1) / block_cols, 16, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t j = begin * block_cols; j < std::min(n, end * block_cols); j += block_cols)
            for (std::int64_t i = 0; i < m; i += block_rows) {
                const std::int64_t rows = std::min(block_rows, m - i), cols = std::min(block_cols, n - j);
                multiplies[static_cast<std::size_t>(rows - 1)][static_cast<std::size_t>(cols - 1)](
                    k, x.f32() + i * k, k, weight.f32() + j * k, y.f32() + i * n + j, n);
            }
    });
}

void append_rows(const Tensor& in, std::span<float* const> to) {
    ATELIER_CHECK(static_cast<std::int64_t>(to.size()) == in.size(0), "{} rows to {} places", in.size(0), to.size());
    for (std::size_t i = 0; i < to.size(); ++i) std::copy_n(in.f32() + static_cast<std::int64_t>(i) * in.size(1), in.size(1), to[i]);
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
            std::array<CachedTokens, 2> parts{first[static_cast<std::size_t>(row)], second[static_cast<std::size_t>(row)]};
            float* p = scores.f32() + t * s.most_keys;
            std::int64_t keys = 0;
            for (CachedTokens& part : parts) {
                if (part.length == 0) continue;  // of null pointers
                part.k += key_head * d;
                part.v += key_head * d;
                for (std::int64_t j = 0; j < part.length; j += block_rows) {
                    const std::int64_t n = std::min(block_rows, part.length - j);
                    multiplies[static_cast<std::size_t>(n - 1)][0](d, part.k + j * width, width, q.f32() + t * d, p + keys + j, 1);
                }
                keys += part.length;
            }
            for (std::int64_t j = 0; j < keys; ++j) p[j] *= s.scale;
            const float top = lane_max(keys, -INFINITY, p);
            for (std::int64_t j = 0; j < keys; ++j) p[j] = exp_f32(p[j] - top);
            const float inverse = 1.0f / lane_sum(keys, [=](std::int64_t j) { return p[j]; });
            for (std::int64_t j = 0; j < keys; ++j) p[j] *= inverse;
            for (std::int64_t i = 0; i < d;) {
                const bool wide = d - i >= 32;
                const int n = wide ? 32 : d - i >= 8 ? 8 : 1;
                (wide ? weigh_values<32> : n == 8 ? weigh_values<8> : weigh_values<1>)(parts, p, width, out.f32() + t * d + i);
                for (CachedTokens& part : parts)
                    if (part.length > 0) part.v += n;
                i += n;
            }
        }
    });
}

}  // namespace atelier::ops::cpu
