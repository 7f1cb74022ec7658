#pragma once

#include <cstdint>

// Operands of products on AMX in the order in which the kernel of amx_block.hpp reads them.

/// Whether this build has code for AMX (and AVX-512 BF16, which rounds). Clang before 16 spells the names without the underscore.
#if (defined(__AMX_BF16__) || defined(__AMXBF16__)) && defined(__AVX512BF16__) && defined(__linux__)
#define ATELIER_HAS_AMX 1
#else
#define ATELIER_HAS_AMX 0
#endif

namespace atelier::ops::cpu {

using Bf16 = std::uint16_t;  ///< the upper half of an fp32 number

/// How an fp32 number becomes bf16 ones: rounded to the nearest even, or as the sum of three, which is the number itself (24 bits in three times 8 with
/// signs of their own; of numbers below 2^-103 the last bits may be lost, as AMX takes no subnormal numbers).
enum class Parts : std::uint8_t { rounded = 1, exact = 3 };
constexpr std::int64_t count(Parts parts) { return static_cast<std::int64_t>(parts); }

/// A panel holds `panel_side` rows of A, or columns of B, over the depth of a product, in steps of `panel_step`. A step is two tiles for each part, the
/// largest first. A tile of A is 16 rows of 16 pairs; a tile of B 16 pairs of 16 columns; pair j of a step is depth j and 16 + j.
constexpr std::int64_t panel_side = 32, panel_step = 32, tile_side = 16, tile_numbers = 512, part_numbers = 2 * tile_numbers;

constexpr std::int64_t steps_of(std::int64_t depth) { return (depth + panel_step - 1) / panel_step; }
constexpr std::int64_t panel_numbers(std::int64_t depth, Parts parts) { return steps_of(depth) * count(parts) * part_numbers; }

/// A piece of a matrix in memory: the number of row (of A) or column (of B) i at depth p is at data[i * stride + p] if `is_deep`, else at
/// data[p * stride + i].
struct PanelSource {
    const float* data;
    std::int64_t stride, count, depth;
    bool is_deep;
};

enum class Side : std::uint8_t { a, b };

/// Fills the panels of a piece, one behind the other; what the piece lacks of the last one is 0. Of a panel of up to 16 rows or columns the second
/// tiles are left as they are.
void pack_panels(Side side, Parts parts, const PanelSource& from, Bf16* to);

}  // namespace atelier::ops::cpu
