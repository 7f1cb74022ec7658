#include "ops/cpu/bf16_block.hpp"

#include <cstring>

#include "core/error.hpp"
#include "ops/cpu/onednn.hpp"

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif
#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)
#define ATELIER_HAS_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace atelier::ops::cpu {
namespace {

#ifdef ATELIER_HAS_AMX

/// The kernel saves the registers of AMX only for processes that have asked for them.
bool may_use_tiles() {
    constexpr int request_permission = 0x1023, tile_data = 18;  // arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
    return (dnnl_get_effective_cpu_isa() & dnnl_cpu_isa_avx512_core_amx) == dnnl_cpu_isa_avx512_core_amx &&
           syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

/// What ldtilecfg reads: eight tiles of 16 rows of 64 bytes.
struct alignas(64) TileConfiguration {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t bytes_of_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileConfiguration tile_configuration;

// The compiler doesn't know which memory the tiles' loads read.
void finish_writes() { asm volatile("" ::: "memory"); }

/// Tiles 0 to 3 are sums, 4 and 5 of A, 6 and 7 of B.
template <bool two_rows, bool two_cols>
void multiply_with_tiles(const Bf16* a, const Bf16* b, std::int64_t steps, float* out, std::int64_t stride) {
    finish_writes();
    for (std::int64_t i = 0; i < (two_rows ? 2 : 1) * tile_side; ++i) {
        __builtin_prefetch(out + i * stride, 1);
        if constexpr (two_cols) __builtin_prefetch(out + i * stride + tile_side, 1);
    }
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (std::int64_t s = 0; s < steps; ++s, a += step_numbers, b += step_numbers) {
        _tile_loadd(4, a, 64);
        if constexpr (two_rows) _tile_loadd(5, a + tile_numbers, 64);
        _tile_loadd(6, b, 64);
        if constexpr (two_cols) _tile_loadd(7, b + tile_numbers, 64);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (two_rows) _tile_dpbf16ps(2, 5, 6);
        if constexpr (two_cols) _tile_dpbf16ps(1, 4, 7);
        if constexpr (two_rows && two_cols) _tile_dpbf16ps(3, 5, 7);
    }
    const std::int64_t bytes = stride * 4;
    _tile_stored(0, out, bytes);
    if constexpr (two_cols) _tile_stored(1, out + tile_side, bytes);
    if constexpr (two_rows) _tile_stored(2, out + tile_side * stride, bytes);
    if constexpr (two_rows && two_cols) _tile_stored(3, out + tile_side * stride + tile_side, bytes);
    finish_writes();
}

#endif

#ifdef __AVX512BF16__

int pair(const Bf16* from) {
    int two;
    std::memcpy(&two, from, sizeof two);
    return two;
}

/// Eight rows at a time: their sums, a row of B and a pair of A fit the registers.
template <int vectors>
void multiply_with_vectors(const Bf16* a, std::int64_t rows, const Bf16* b, std::int64_t steps, float* out, std::int64_t stride) {
    constexpr std::int64_t height = 8;
    for (std::int64_t i = 0; i < rows; i += height, out += height * stride) {
        __m512 sum[height][vectors];
        for (auto& row : sum)
            for (__m512& v : row) v = _mm512_setzero_ps();
        for (std::int64_t s = 0; s < steps; ++s) {
            const Bf16 *left = a + s * step_numbers + i * panel_step, *right = b + s * step_numbers;
            for (std::int64_t p = 0; p < tile_side; ++p) {
                __m512bh of_b[vectors];
                for (int j = 0; j < vectors; ++j) of_b[j] = reinterpret_cast<__m512bh>(_mm512_load_si512(right + j * tile_numbers + p * panel_step));
                for (std::int64_t r = 0; r < height; ++r) {
                    const auto of_a = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair(left + r * panel_step + 2 * p)));
                    for (int j = 0; j < vectors; ++j) sum[r][j] = _mm512_dpbf16_ps(sum[r][j], of_a, of_b[j]);
                }
            }
        }
        for (std::int64_t r = 0; r < height; ++r)
            for (int j = 0; j < vectors; ++j) _mm512_storeu_ps(out + r * stride + j * tile_side, sum[r][j]);
    }
}

#endif

Bf16Unit find_unit() {
#ifdef ATELIER_HAS_AMX
    if (may_use_tiles()) return Bf16Unit::tiles;
#endif
#ifdef __AVX512BF16__
    if ((dnnl_get_effective_cpu_isa() & dnnl_cpu_isa_avx512_core_bf16) == dnnl_cpu_isa_avx512_core_bf16) return Bf16Unit::vectors;
#endif
    return Bf16Unit::none;
}

}  // namespace

Bf16Unit bf16_unit() {
    static const Bf16Unit instance = find_unit();
    return instance;
}

BlockScope::BlockScope() {
#ifdef ATELIER_HAS_AMX
    if (bf16_unit() != Bf16Unit::tiles) return;
    finish_writes();
    _tile_loadconfig(&tile_configuration);
#endif
}

BlockScope::~BlockScope() {
#ifdef ATELIER_HAS_AMX
    if (bf16_unit() == Bf16Unit::tiles) _tile_release();
#endif
}

void multiply_block([[maybe_unused]] const Bf16* a, std::int64_t rows, [[maybe_unused]] const Bf16* b, std::int64_t cols, [[maybe_unused]] std::int64_t steps,
                    [[maybe_unused]] float* out, [[maybe_unused]] std::int64_t stride) {
    [[maybe_unused]] const bool two_rows = rows > tile_side, two_cols = cols > tile_side;
#ifdef ATELIER_HAS_AMX
    if (bf16_unit() == Bf16Unit::tiles) {
        if (two_rows) return (two_cols ? multiply_with_tiles<true, true> : multiply_with_tiles<true, false>)(a, b, steps, out, stride);
        return (two_cols ? multiply_with_tiles<false, true> : multiply_with_tiles<false, false>)(a, b, steps, out, stride);
    }
#endif
#ifdef __AVX512BF16__
    for (int half = 0; half < (two_rows ? 2 : 1); ++half, a += tile_numbers, out += tile_side * stride)
        (two_cols ? multiply_with_vectors<2> : multiply_with_vectors<1>)(a, tile_side, b, steps, out, stride);
#else
    ATELIER_FAIL(ErrorKind::internal, "this processor has no bf16 products");
#endif
}

}  // namespace atelier::ops::cpu
