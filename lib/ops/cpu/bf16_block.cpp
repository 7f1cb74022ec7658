#include "ops/cpu/bf16_block.hpp"

#include "core/error.hpp"
#include "ops/cpu/onednn.hpp"

#if ATELIER_HAS_AMX
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace atelier::ops::cpu {
namespace {

#if ATELIER_HAS_AMX

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
void multiply_with_tiles(const Bf16* a, const Bf16* b, std::int64_t steps, bool adds, float* out, std::int64_t stride) {
    const std::int64_t bytes = stride * 4;
    finish_writes();
    if (adds) {
        _tile_loadd(0, out, bytes);
        if constexpr (two_cols) _tile_loadd(1, out + tile_side, bytes);
        if constexpr (two_rows) _tile_loadd(2, out + tile_side * stride, bytes);
        if constexpr (two_rows && two_cols) _tile_loadd(3, out + tile_side * stride + tile_side, bytes);
    } else {
        for (std::int64_t i = 0; i < (two_rows ? 2 : 1) * tile_side; ++i) {
            __builtin_prefetch(out + i * stride, 1);
            if constexpr (two_cols) __builtin_prefetch(out + i * stride + tile_side, 1);
        }
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
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
    _tile_stored(0, out, bytes);
    if constexpr (two_cols) _tile_stored(1, out + tile_side, bytes);
    if constexpr (two_rows) _tile_stored(2, out + tile_side * stride, bytes);
    if constexpr (two_rows && two_cols) _tile_stored(3, out + tile_side * stride + tile_side, bytes);
    finish_writes();
}

#endif

}  // namespace

bool has_amx() {
#if ATELIER_HAS_AMX
    static const bool instance = may_use_tiles();
    return instance;
#else
    return false;
#endif
}

BlockScope::BlockScope() {
#if ATELIER_HAS_AMX
    finish_writes();
    _tile_loadconfig(&tile_configuration);
#endif
}

BlockScope::~BlockScope() {
#if ATELIER_HAS_AMX
    _tile_release();
#endif
}

#if ATELIER_HAS_AMX
void multiply_block(const Bf16* a, std::int64_t rows, const Bf16* b, std::int64_t cols, std::int64_t steps, bool adds, float* out, std::int64_t stride) {
    const bool two_rows = rows > tile_side, two_cols = cols > tile_side;
    if (two_rows) (two_cols ? multiply_with_tiles<true, true> : multiply_with_tiles<true, false>)(a, b, steps, adds, out, stride);
    else (two_cols ? multiply_with_tiles<false, true> : multiply_with_tiles<false, false>)(a, b, steps, adds, out, stride);
}
#else
void multiply_block(const Bf16*, std::int64_t, const Bf16*, std::int64_t, std::int64_t, bool, float*, std::int64_t) {
    ATELIER_FAIL(ErrorKind::internal, "this build has no code for AMX");
}
#endif

}  // namespace atelier::ops::cpu
