#pragma once

#include "ops/matmul.hpp"

namespace atelier::ops::cpu {

/// Whether this processor has bf16 products that oneDNN uses (AVX-512 BF16 or AMX).
bool has_bf16_products();

/// What they come to hold: tiles of each thread and oneDNN's copies of them, and the code that it generates for each shape. Measured on the
/// miniature's stages (docs/performance.md, "Memory").
std::size_t bf16_product_bytes();

/// `matmul` with operands rounded to bf16 (nearest even) and sums in fp32, where `has_bf16_products`. A and B are rounded a tile at a time
/// into buffers of the calling thread, so nothing of a matrix's size is held twice. Subnormal operands count as 0, as the processor takes them.
///
/// Bits depend on shapes, strides and flags alone; with A not transposed, a row's do not depend on its place nor on how many rows there are.
void bf16_matmul(bool transpose_a, bool transpose_b, float alpha, const MatrixView& a, const MatrixView& b, float beta, const MatrixView& c);

}  // namespace atelier::ops::cpu
