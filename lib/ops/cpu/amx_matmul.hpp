#pragma once

#include "ops/matmul.hpp"
#include "ops/precision.hpp"

namespace atelier::ops::cpu {

/// What a transformer's products come to hold on a thread that packs them: `width` numbers a token, matrices of 3 to 6 times that, a thousand rows.
/// 0 on a processor without AMX.
std::size_t packed_operand_bytes(std::int64_t width, ProductPrecision precision);

/// `matmul` on AMX (`has_amx`), in the calling thread's precision, sums in fp32: operands rounded to bf16 (nearest even), or as three bf16 numbers each,
/// whose products are as exact as those of fp32 numbers. Subnormal operands and results count as 0, and an infinite operand of the exact ones as NaN.
/// Operands are packed a piece at a time into buffers of the calling thread, so nothing of a matrix's size is held twice.
///
/// Bits depend on an element's row of op(A), its column of op(B), their depth, alpha and beta alone: neither on threads nor on what else is in the
/// product.
void amx_matmul(bool transpose_a, bool transpose_b, float alpha, const MatrixView& a, const MatrixView& b, float beta, const MatrixView& c);

}  // namespace atelier::ops::cpu
