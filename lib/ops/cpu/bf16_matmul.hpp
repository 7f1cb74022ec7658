#pragma once

#include "ops/matmul.hpp"

namespace atelier::ops::cpu {

/// Whether this processor multiplies bf16 numbers faster than fp32 ones (AMX).
bool has_bf16_products();

/// What a transformer's products come to hold on a thread that packs them: `width` numbers a token, matrices of 3 to 6 times that, a thousand rows.
std::size_t bf16_product_bytes(std::int64_t width);

/// `matmul` with operands rounded to bf16 (nearest even) and sums in fp32, where `has_bf16_products`. Subnormal operands and results count as 0.
/// Operands are packed a piece at a time into buffers of the calling thread, so nothing of a matrix's size is held twice.
///
/// Bits depend on an element's row of op(A), its column of op(B), their depth, alpha and beta alone: neither on threads nor on what else is in the
/// product.
void bf16_matmul(bool transpose_a, bool transpose_b, float alpha, const MatrixView& a, const MatrixView& b, float beta, const MatrixView& c);

}  // namespace atelier::ops::cpu
