#pragma once

#include <cstdint>

#include "ops/cpu/bf16_panels.hpp"

namespace atelier::ops::cpu {

/// What multiplies bf16 numbers: nothing, AVX-512 BF16 (vdpbf16ps), AMX (tdpbf16ps). Neither takes or makes subnormal numbers: they count as 0.
enum class Bf16Unit : std::uint8_t { none, vectors, tiles };

/// Of this processor, as far as this build has code for it, the operating system lets it be used and oneDNN's limit of instruction sets
/// (the environment's ONEDNN_MAX_CPU_ISA, which holds for all products) allows.
Bf16Unit bf16_unit();

/// The calling thread may use `multiply_block` for the scope's life: AMX's tiles are configured, and given back at the end.
class BlockScope {
  public:
    BlockScope();
    ~BlockScope();
    BlockScope(const BlockScope&) = delete;
    BlockScope& operator=(const BlockScope&) = delete;
};

/// `out` = the product of a panel of A with `rows` rows and a panel of B with `cols` columns, fp32, `stride` numbers from row to row; rows and columns
/// are filled up to 16 or 32: as many are written. A number's bits depend on its row, its column and the depth alone.
void multiply_block(const Bf16* a, std::int64_t rows, const Bf16* b, std::int64_t cols, std::int64_t steps, float* out, std::int64_t stride);

}  // namespace atelier::ops::cpu
