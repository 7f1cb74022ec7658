#pragma once

#include "ops/backend.hpp"

namespace atelier::ops::cuda {

/// One product as the library sees it: column-major D = alpha op(A) op(B) + beta D, A [m, k], B [k, n] after op, D [m, n]; leading
/// dimensions in numbers. Operands are both fp32 or both bf16; sums are fp32, D is fp32 or (of bf16 operands) rounded to bf16. bias [m] (null:
/// none, and none beside a rounded D) is added by the epilogue.
struct Product {
    bool transpose_a = false, transpose_b = false, bf16 = false, rounds_result = false;
    std::int64_t m = 0, n = 0, k = 0, lda = 0, ldb = 0, ldd = 0;
    bool has_bias = false;
    bool operator==(const Product&) const = default;
};

/// cuBLASLt; the algorithm is chosen once per Product and kept, so that one shape has the same bits in a process; of algorithms that
/// add partial results in no fixed order none is taken.
void run_product(const Product& product, float alpha, const void* a, const void* b, float beta, void* d, const float* bias);

/// ops::matmul on operands as they are, whatever the process's precision.
void matmul_in_fp32(bool transpose_a, bool transpose_b, float alpha, const MatrixView& a, const MatrixView& b, float beta, const MatrixView& c);

void set_product_precision(ProductPrecision precision);
ProductPrecision product_precision();
void keep_bf16_copy(const float* weights, std::int64_t n);
void refresh_bf16_copy(const float* weights);
std::uint16_t* bf16_copy_of(const float* weight);

}  // namespace atelier::ops::cuda
