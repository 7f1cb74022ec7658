#include "ops/cpu/amx_block.hpp"

#include <algorithm>

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
struct Tiles {
    static constexpr std::int64_t rows = two_rows ? panel_side : tile_side;
    static void load_a(const Bf16* a) {
        _tile_loadd(4, a, 64);
        if constexpr (two_rows) _tile_loadd(5, a + tile_numbers, 64);
    }
    static void load_b(const Bf16* b) {
        _tile_loadd(6, b, 64);
        if constexpr (two_cols) _tile_loadd(7, b + tile_numbers, 64);
    }
    static void multiply() {
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (two_rows) _tile_dpbf16ps(2, 5, 6);
        if constexpr (two_cols) _tile_dpbf16ps(1, 4, 7);
        if constexpr (two_rows && two_cols) _tile_dpbf16ps(3, 5, 7);
    }
    static void load_sums(const float* from, std::int64_t stride) {
        const std::int64_t bytes = stride * 4;
        _tile_loadd(0, from, bytes);
        if constexpr (two_cols) _tile_loadd(1, from + tile_side, bytes);
        if constexpr (two_rows) _tile_loadd(2, from + tile_side * stride, bytes);
        if constexpr (two_rows && two_cols) _tile_loadd(3, from + tile_side * stride + tile_side, bytes);
    }
    static void store_sums(float* to, std::int64_t stride) {
        const std::int64_t bytes = stride * 4;
        _tile_stored(0, to, bytes);
        if constexpr (two_cols) _tile_stored(1, to + tile_side, bytes);
        if constexpr (two_rows) _tile_stored(2, to + tile_side * stride, bytes);
        if constexpr (two_rows && two_cols) _tile_stored(3, to + tile_side * stride + tile_side, bytes);
    }
    /// Some rows of where sums will be stored.
    static void fetch(const float* to, std::int64_t stride, std::int64_t first, std::int64_t count) {
        for (std::int64_t i = first; i < std::min(first + count, rows); ++i) {
            __builtin_prefetch(to + i * stride, 1);
            if constexpr (two_cols) __builtin_prefetch(to + i * stride + tile_side, 1);
        }
    }
    static void clear_sums() {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    template <Parts parts>
    static void step(const Bf16* a, const Bf16* b) {
        const auto of_a = [a](std::int64_t part) { load_a(a + part * part_numbers); };
        const auto of_b = [b](std::int64_t part) { load_b(b + part * part_numbers); };
        if constexpr (parts == Parts::exact) {  // one side is loaded anew at a time
            of_a(2), of_b(0), multiply();
            of_a(1), multiply();
            of_b(1), multiply();
            of_a(0), multiply();
            of_b(2), multiply();
            of_b(0), multiply();
        } else {
            of_a(0), of_b(0), multiply();
        }
    }
};

/// On Xeons with AMX what follows a store of a tile waits some 900 cycles where the store before was 2,500 cycles ago, as if it had to be woken. So a tile is
/// stored in between, to no other end (docs/performance.md).
constexpr std::int64_t products_between_stores = 18;

template <Parts parts, bool two_rows, bool two_cols>
void multiply_with_tiles(const Bf16* a, const Bf16* b, std::int64_t steps, bool adds, float* out, std::int64_t stride) {
    using Tiles = Tiles<two_rows, two_cols>;
    constexpr std::int64_t numbers = count(parts) * part_numbers, together = parts == Parts::exact ? products_between_stores / 6 : products_between_stores;
    alignas(64) Bf16 unused[tile_numbers];
    finish_writes();
    if (adds) Tiles::load_sums(out, stride);
    else Tiles::clear_sums();
    const std::int64_t rows_a_step = adds ? 0 : (Tiles::rows + steps - 1) / steps;
    for (std::int64_t s = 0; s < steps;) {
        for (const std::int64_t end = std::min(steps, s + together); s < end; ++s, a += numbers, b += numbers) {
            Tiles::fetch(out, stride, s * rows_a_step, rows_a_step);
            Tiles::template step<parts>(a, b);
        }
        if (s < steps) _tile_stored(4, unused, 64);
    }
    Tiles::store_sums(out, stride);
    finish_writes();
}

template <Parts parts>
void multiply_panels(const Bf16* a, std::int64_t rows, const Bf16* b, std::int64_t cols, std::int64_t steps, bool adds, float* out, std::int64_t stride) {
    const bool two_rows = rows > tile_side, two_cols = cols > tile_side;
    if (two_rows) (two_cols ? multiply_with_tiles<parts, true, true> : multiply_with_tiles<parts, true, false>)(a, b, steps, adds, out, stride);
    else (two_cols ? multiply_with_tiles<parts, false, true> : multiply_with_tiles<parts, false, false>)(a, b, steps, adds, out, stride);
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
void multiply_block(Parts parts, const Bf16* a, std::int64_t rows, const Bf16* b, std::int64_t cols, std::int64_t steps, bool adds, float* out,
                    std::int64_t stride) {
    (parts == Parts::exact ? multiply_panels<Parts::exact> : multiply_panels<Parts::rounded>)(a, rows, b, cols, steps, adds, out, stride);
}
#else
void multiply_block(Parts, const Bf16*, std::int64_t, const Bf16*, std::int64_t, std::int64_t, bool, float*, std::int64_t) {
    ATELIER_FAIL(ErrorKind::internal, "this build has no code for AMX");
}
#endif

}  // namespace atelier::ops::cpu
