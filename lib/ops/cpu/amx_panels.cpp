#include "ops/cpu/amx_panels.hpp"

#include <algorithm>

#include "core/error.hpp"

#if ATELIER_HAS_AMX
#include <immintrin.h>
#endif

namespace atelier::ops::cpu {

#if ATELIER_HAS_AMX

namespace {

__mmask16 first(std::int64_t n) { return n >= 16 ? __mmask16{0xffff} : n <= 0 ? __mmask16{0} : static_cast<__mmask16>((1u << n) - 1); }

/// One row of a tile of each part.
template <Parts parts>
void convert(__m512 low, __m512 high, Bf16* to) {
    const __m512i order = _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                           _mm512_slli_epi32(_mm512_setr_epi32(16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31), 16));
    const auto store_part = [&order](__m512 l, __m512 h, Bf16* part) {
        const __m512i pairs = _mm512_permutexvar_epi16(order, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(h, l)));
        _mm512_store_si512(part, pairs);
        __builtin_prefetch(part + panel_step, 1);
        return pairs;
    };
    __m512i pairs = store_part(low, high, to);
    for (std::int64_t i = 1; i < count(parts); ++i) {  // what the parts before lack is exact in fp32
        low = _mm512_sub_ps(low, _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)));
        high = _mm512_sub_ps(high, _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536))));
        pairs = store_part(low, high, to + i * part_numbers);
    }
}

/// 16 x 16 pairs in place.
void transpose(Bf16* tile) {
    __m512i r[16], t[16];
    for (int i = 0; i < 16; ++i) r[i] = _mm512_load_si512(tile + i * panel_step);
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; ++j) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
    // r[4 i + j] holds columns j, 4 + j, 8 + j, 12 + j of rows 4 i .. 4 i + 3.
    for (int j = 0; j < 4; ++j) {
        t[j] = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88);
        t[4 + j] = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd);
        t[8 + j] = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
        t[12 + j] = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
    }
    for (int j = 0; j < 4; ++j) {
        _mm512_store_si512(tile + j * panel_step, _mm512_shuffle_i32x4(t[j], t[8 + j], 0x88));
        _mm512_store_si512(tile + (8 + j) * panel_step, _mm512_shuffle_i32x4(t[j], t[8 + j], 0xdd));
        _mm512_store_si512(tile + (4 + j) * panel_step, _mm512_shuffle_i32x4(t[4 + j], t[12 + j], 0x88));
        _mm512_store_si512(tile + (12 + j) * panel_step, _mm512_shuffle_i32x4(t[4 + j], t[12 + j], 0xdd));
    }
}

/// Rows along the depth, as they lie in memory, a few steps of a panel's rows at a time: their tiles stay in the first-level cache.
template <Parts parts>
void pack_deep(const PanelSource& from, Bf16* to) {
    constexpr std::int64_t step = count(parts) * part_numbers, together = 12 / count(parts) * panel_step;
    for (std::int64_t top = 0; top < from.count; top += panel_side, to += panel_numbers(from.depth, parts)) {
        const std::int64_t rows = std::min(panel_side, from.count - top), filled = (rows + tile_side - 1) / tile_side * tile_side;
        for (std::int64_t begin = 0; begin < from.depth; begin += together)
            for (std::int64_t i = 0; i < filled; ++i) {
                const float* row = from.data + (top + i) * from.stride;
                Bf16* row_to = to + begin / panel_step * step + i * panel_step;
                // The hardware's own prefetching does not see which row comes next.
                const float* next = i + 1 < rows ? row + from.stride : row;
                for (std::int64_t p = begin; p < std::min(begin + together, from.depth); p += panel_step, row_to += step) {
                    __builtin_prefetch(next + p);
                    __builtin_prefetch(next + p + 16);
                    const std::int64_t deep = i < rows ? from.depth - p : 0;
                    if (deep >= panel_step) convert<parts>(_mm512_loadu_ps(row + p), _mm512_loadu_ps(row + p + 16), row_to);
                    else convert<parts>(_mm512_maskz_loadu_ps(first(deep), row + p), _mm512_maskz_loadu_ps(first(deep - 16), row + p + 16), row_to);
                }
            }
    }
}

constexpr std::int64_t rows_ahead = 4;

/// Depth after depth, each over all rows or columns of the panels.
template <Parts parts>
void pack_wide(const PanelSource& from, Bf16* to) {
    for (std::int64_t p = 0; p < from.depth; p += panel_step, to += count(parts) * part_numbers)
        for (std::int64_t i = 0; i < tile_side; ++i) {
            const float *low = from.data + (p + i) * from.stride, *high = low + tile_side * from.stride;
            const bool has_low = p + i < from.depth, has_high = p + i + tile_side < from.depth;
            // Rows are pages apart: the hardware does not see which comes next.
            const std::int64_t ahead = rows_ahead * from.stride;
            for (std::int64_t at = 0; at < from.count; at += tile_side) {
                __builtin_prefetch(low + ahead + at);
                __builtin_prefetch(high + ahead + at);
                const __mmask16 low_mask = has_low ? first(from.count - at) : __mmask16{0}, high_mask = has_high ? first(from.count - at) : __mmask16{0};
                convert<parts>(_mm512_maskz_loadu_ps(low_mask, low + at), _mm512_maskz_loadu_ps(high_mask, high + at),
                               to + at / panel_side * panel_numbers(from.depth, parts) + at % panel_side * panel_step + i * panel_step);
            }
        }
}

}  // namespace

void pack_panels(Side side, Parts parts, const PanelSource& from, Bf16* to) {
    if (parts == Parts::rounded) (from.is_deep ? pack_deep<Parts::rounded> : pack_wide<Parts::rounded>)(from, to);
    else (from.is_deep ? pack_deep<Parts::exact> : pack_wide<Parts::exact>)(from, to);
    if (from.is_deep == (side == Side::a)) return;
    const std::int64_t tiles = panel_numbers(from.depth, parts) / tile_numbers;
    for (std::int64_t at = 0; at < from.count; at += panel_side)
        for (std::int64_t t = 0; t < tiles; ++t, to += tile_numbers)
            if (t % 2 == 0 || from.count - at > tile_side) transpose(to);
}

#else

void pack_panels(Side, Parts, const PanelSource&, Bf16*) { ATELIER_FAIL(ErrorKind::internal, "this build has no code for AMX"); }

#endif

}  // namespace atelier::ops::cpu
