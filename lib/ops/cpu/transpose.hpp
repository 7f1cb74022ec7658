#pragma once

#include <algorithm>
#include <cstdint>
#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#endif

namespace atelier::ops::cpu {

/// What `transpose` fills rows up to: a register's numbers on AVX-512.
constexpr std::int64_t transpose_step = 16;

namespace transposing {

#if defined(__AVX512F__)

constexpr std::int64_t width = 16;
using Vector = __m512;
inline void store(float* to, Vector v) { _mm512_storeu_ps(to, v); }
inline Vector low_pairs(Vector a, Vector b) { return _mm512_unpacklo_ps(a, b); }
inline Vector high_pairs(Vector a, Vector b) { return _mm512_unpackhi_ps(a, b); }
inline Vector low_halves(Vector a, Vector b) { return _mm512_shuffle_ps(a, b, 0x44); }
inline Vector high_halves(Vector a, Vector b) { return _mm512_shuffle_ps(a, b, 0xee); }
inline Vector fours_of(const float* const* rows, int r, std::int64_t p) {
    const Vector one = _mm512_castps128_ps512(_mm_loadu_ps(rows[r] + p)), two = _mm512_insertf32x4(one, _mm_loadu_ps(rows[r + 4] + p), 1);
    return _mm512_insertf32x4(_mm512_insertf32x4(two, _mm_loadu_ps(rows[r + 8] + p), 2), _mm_loadu_ps(rows[r + 12] + p), 3);
}

#elif defined(__AVX2__) && defined(__FMA__)

constexpr std::int64_t width = 8;
using Vector = __m256;
inline void store(float* to, Vector v) { _mm256_storeu_ps(to, v); }
inline Vector low_pairs(Vector a, Vector b) { return _mm256_unpacklo_ps(a, b); }
inline Vector high_pairs(Vector a, Vector b) { return _mm256_unpackhi_ps(a, b); }
inline Vector low_halves(Vector a, Vector b) { return _mm256_shuffle_ps(a, b, 0x44); }
inline Vector high_halves(Vector a, Vector b) { return _mm256_shuffle_ps(a, b, 0xee); }
inline Vector fours_of(const float* const* rows, int r, std::int64_t p) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(rows[r] + p)), _mm_loadu_ps(rows[r + 4] + p), 1);
}

#endif

}  // namespace transposing

/// to[p * to_stride + j] = from[j * stride + p] for j < rows, p < cols, by the calling thread. Up to the next multiple of `transpose_step` of j anything
/// is written: `to_stride` has room for it.
inline void transpose(const float* from, std::int64_t stride, std::int64_t rows, std::int64_t cols, float* to, std::int64_t to_stride) {
    std::int64_t fours = 0;
#if defined(__AVX2__) && defined(__FMA__)
    using namespace transposing;
    fours = cols / 4 * 4;
    for (std::int64_t j = 0; j < rows; j += width) {
        const float* row[width];
        for (std::int64_t i = 0; i < width; ++i) row[i] = from + std::min(j + i, rows - 1) * stride;
        for (std::int64_t p = 0; p < fours; p += 4) {
            // Four numbers of rows r, r + 4, ... side by side; then squares of four by four are turned where they stand.
            const Vector r0 = fours_of(row, 0, p), r1 = fours_of(row, 1, p), r2 = fours_of(row, 2, p), r3 = fours_of(row, 3, p);
            const Vector low01 = low_pairs(r0, r1), low23 = low_pairs(r2, r3), high01 = high_pairs(r0, r1), high23 = high_pairs(r2, r3);
            float* out = to + p * to_stride + j;
            store(out, low_halves(low01, low23));
            store(out + to_stride, high_halves(low01, low23));
            store(out + 2 * to_stride, low_halves(high01, high23));
            store(out + 3 * to_stride, high_halves(high01, high23));
        }
    }
#endif
    for (std::int64_t j = 0; j < rows; ++j)
        for (std::int64_t p = fours; p < cols; ++p) to[p * to_stride + j] = from[j * stride + p];
}

}  // namespace atelier::ops::cpu
