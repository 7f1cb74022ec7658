#pragma once

#include <cstdint>

#include "ops/cpu/amx_panels.hpp"

namespace atelier::ops::cpu {

/// Whether this processor has AMX, as far as this build has code for it, the operating system lets it be used and oneDNN's limit of instruction sets
/// (the environment's DNNL_MAX_CPU_ISA, which holds for all products) allows. (AVX-512 BF16's own products are a third slower than those of fp32 on
/// Intel's processors.)
bool has_amx();

/// The calling thread may use `multiply_block` for the scope's life: AMX's tiles are configured, and given back at the end.
class BlockScope {
  public:
    BlockScope();
    ~BlockScope();
    BlockScope(const BlockScope&) = delete;
    BlockScope& operator=(const BlockScope&) = delete;
};

/// `out` = the product of a panel of A with `rows` rows and a panel of B with `cols` columns, or `out` + it if it `adds`, fp32, `stride` numbers from row
/// to row; rows and columns are filled up to 16 or 32: as many are written (and read). A number's bits depend on its row, its column and the depth alone.
/// Of three parts each, six products of two are added, the smallest first in each step; the other three are below 2^-26 of the whole.
/// AMX takes and makes no subnormal numbers: they count as 0.
void multiply_block(Parts parts, const Bf16* a, std::int64_t rows, const Bf16* b, std::int64_t cols, std::int64_t steps, bool adds, float* out,
                    std::int64_t stride);

}  // namespace atelier::ops::cpu
