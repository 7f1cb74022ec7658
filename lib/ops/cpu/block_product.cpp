#include "ops/cpu/block_product.hpp"

#include <algorithm>
#include <cmath>
#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#endif

#include "ops/cpu/transpose.hpp"

namespace atelier::ops::cpu {
namespace {

// A register of numbers, and how many rows and registers of columns a tile has: its sums, a row of b and one number of a fit the registers.
#if defined(__AVX512F__)

constexpr std::int64_t width = 16;
constexpr int tile_rows = 8, tile_vectors = 3;
using Vector = __m512;
using Mask = __mmask16;
Mask first(std::int64_t n) { return static_cast<Mask>((1u << n) - 1); }
Vector zero() { return _mm512_setzero_ps(); }
Vector all(float x) { return _mm512_set1_ps(x); }
Vector load(const float* from) { return _mm512_loadu_ps(from); }
Vector load(const float* from, Mask mask) { return _mm512_maskz_loadu_ps(mask, from); }
void store(float* to, Vector v) { _mm512_storeu_ps(to, v); }
void store(float* to, Mask mask, Vector v) { _mm512_mask_storeu_ps(to, mask, v); }
Vector fused(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }

#elif defined(__AVX2__) && defined(__FMA__)

constexpr std::int64_t width = 8;
constexpr int tile_rows = 6, tile_vectors = 2;
using Vector = __m256;
using Mask = __m256i;
Mask first(std::int64_t n) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)); }
Vector zero() { return _mm256_setzero_ps(); }
Vector all(float x) { return _mm256_set1_ps(x); }
Vector load(const float* from) { return _mm256_loadu_ps(from); }
Vector load(const float* from, Mask mask) { return _mm256_maskload_ps(from, mask); }
void store(float* to, Vector v) { _mm256_storeu_ps(to, v); }
void store(float* to, Mask mask, Vector v) { _mm256_maskstore_ps(to, mask, v); }
Vector fused(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }

#else

constexpr std::int64_t width = 8;
constexpr int tile_rows = 4, tile_vectors = 2;
struct Vector {
    float v[width];
};
using Mask = std::int64_t;
Mask first(std::int64_t n) { return n; }
Vector all(float x) {
    Vector r;
    std::fill_n(r.v, width, x);
    return r;
}
Vector zero() { return all(0.0f); }
Vector load(const float* from, Mask mask) {
    Vector r = zero();
    std::copy_n(from, mask, r.v);
    return r;
}
Vector load(const float* from) { return load(from, width); }
void store(float* to, Mask mask, Vector v) { std::copy_n(v.v, mask, to); }
void store(float* to, Vector v) { store(to, width, v); }
Vector fused(Vector a, Vector b, Vector c) {
    for (std::int64_t i = 0; i < width; ++i) c.v[i] = std::fma(a.v[i], b.v[i], c.v[i]);
    return c;
}

#endif

constexpr std::int64_t tile_cols = tile_vectors * width, piece = 256;

/// The number of a in row i at depth p is at data[i * row + p * depth].
struct Left {
    const float* data;
    std::int64_t row, depth;
};
struct Right {  ///< depth x columns
    const float* data;
    std::int64_t stride;
};
struct Scale {
    float alpha, beta;
};

/// `rows` x (vectors - 1 whole registers and the first `last` of one more); the depth is a piece's.
template <int rows, int vectors>
void tile(std::int64_t depth, Left a, Right b, Mask last, Scale scale, float* c, std::int64_t c_stride) {
    Vector sum[rows][vectors];
    for (int i = 0; i < rows; ++i)
        for (int j = 0; j < vectors; ++j) sum[i][j] = zero();
    for (std::int64_t p = 0; p < depth; ++p) {
        Vector right[vectors];
        for (int j = 0; j + 1 < vectors; ++j) right[j] = load(b.data + p * b.stride + j * width);
        right[vectors - 1] = load(b.data + p * b.stride + (vectors - 1) * width, last);
        for (int i = 0; i < rows; ++i) {
            const Vector left = all(a.data[i * a.row + p * a.depth]);
            for (int j = 0; j < vectors; ++j) sum[i][j] = fused(left, right[j], sum[i][j]);
        }
    }
    const Vector alpha = all(scale.alpha), beta = all(scale.beta);
    for (int i = 0; i < rows; ++i)
        for (int j = 0; j < vectors; ++j) {
            float* to = c + i * c_stride + j * width;
            const bool is_last = j + 1 == vectors;
            const Vector before = scale.beta == 0.0f ? zero() : is_last ? load(to, last) : load(to);
            const Vector result = fused(alpha, sum[i][j], fused(beta, before, zero()));
            if (is_last) store(to, last, result);
            else store(to, result);
        }
}

template <int rows, int vectors>
void few_rows(std::int64_t count, std::int64_t depth, Left a, Right b, Mask last, Scale scale, float* c, std::int64_t c_stride) {
    if constexpr (rows > 0) {
        if (count == rows) tile<rows, vectors>(depth, a, b, last, scale, c, c_stride);
        else few_rows<rows - 1, vectors>(count, depth, a, b, last, scale, c, c_stride);
    }
}

template <int vectors>
void columns(std::int64_t rows, std::int64_t cols, std::int64_t depth, Left a, Right b, Scale scale, float* c, std::int64_t c_stride) {
    const Mask last = first(cols - (vectors - 1) * width);
    std::int64_t i = 0;
    for (; i + tile_rows <= rows; i += tile_rows)
        tile<tile_rows, vectors>(depth, {a.data + i * a.row, a.row, a.depth}, b, last, scale, c + i * c_stride, c_stride);
    few_rows<tile_rows - 1, vectors>(rows - i, depth, {a.data + i * a.row, a.row, a.depth}, b, last, scale, c + i * c_stride, c_stride);
}

template <int vectors>
void columns_of(std::int64_t needed, std::int64_t rows, std::int64_t cols, std::int64_t depth, Left a, Right b, Scale scale, float* c,
                std::int64_t c_stride) {
    if constexpr (vectors > 0) {
        if (needed == vectors) columns<vectors>(rows, cols, depth, a, b, scale, c, c_stride);
        else columns_of<vectors - 1>(needed, rows, cols, depth, a, b, scale, c, c_stride);
    }
}

/// to[p * tile_cols + j] = from[p][j] for p < depth, j < cols.
void copy(Right from, std::int64_t cols, std::int64_t depth, float* to) {
    const std::int64_t whole = cols / width * width;
    const Mask last = first(cols - whole);
    for (std::int64_t p = 0; p < depth; ++p) {
        const float* row = from.data + p * from.stride;
        float* out = to + p * tile_cols;
        for (std::int64_t j = 0; j < whole; j += width) store(out + j, load(row + j));
        if (whole < cols) store(out + whole, load(row + whole, last));
    }
}

}  // namespace

void block_product(bool ta, bool tb, float alpha, const MatrixView& a, const MatrixView& b, float beta, const MatrixView& c) {
    const std::int64_t rows = ta ? a.cols : a.rows, depth = ta ? a.rows : a.cols, cols = tb ? b.rows : b.cols;
    ATELIER_CHECK((tb ? b.cols : b.rows) == depth && c.rows == rows && c.cols == cols, "product of [{}, {}]{} and [{}, {}]{} into [{}, {}]", a.rows,
                  a.cols, ta ? "^T" : "", b.rows, b.cols, tb ? "^T" : "", c.rows, c.cols);
    ATELIER_CHECK(depth > 0, "a product over nothing");
    const std::int64_t vectors = (cols + width - 1) / width, tiles = (vectors + tile_vectors - 1) / tile_vectors;
    const std::int64_t step = (vectors + tiles - 1) / tiles * width;
    alignas(64) float panel[piece * tile_cols];
    for (std::int64_t p = 0; p < depth; p += piece) {
        const std::int64_t here = std::min(piece, depth - p);
        const Left left = ta ? Left{a.data + p * a.stride, 1, a.stride} : Left{a.data + p, a.stride, 1};
        const Scale scale{alpha, p == 0 ? beta : 1.0f};
        for (std::int64_t j = 0; j < cols; j += step) {
            const std::int64_t wide = std::min(step, cols - j);
            Right right{b.data + p * b.stride + j, b.stride};
            if (tb) {
                transpose(b.data + j * b.stride + p, b.stride, wide, here, panel, tile_cols);
                right = {panel, tile_cols};
            } else if (rows > tile_rows) {  // rows of b are pages apart
                copy(right, wide, here, panel);
                right = {panel, tile_cols};
            }
            columns_of<tile_vectors>((wide + width - 1) / width, rows, wide, here, left, right, scale, c.data + j, c.stride);
        }
    }
}

}  // namespace atelier::ops::cpu
