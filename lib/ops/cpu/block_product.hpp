#pragma once

#include "ops/matmul.hpp"

namespace atelier::ops::cpu {

/// c = alpha a b + beta c as matmul, fp32, by the calling thread alone, for operands that lie in its cache (attention's blocks): a library's
/// call costs more than a product of 64 x 9 x 32. A result is a chain of fused multiply-adds in the order of the depth, in pieces of 256: its
/// bits depend on its row of a and its column of b alone.
void block_product(bool ta, bool tb, float alpha, const MatrixView& a, const MatrixView& b, float beta, const MatrixView& c);

}  // namespace atelier::ops::cpu
