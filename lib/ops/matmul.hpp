#pragma once

#include "core/tensor.hpp"
#include "ops/dispatch.hpp"

namespace atelier::ops {

/// A matrix in memory: rows x cols as stored, `stride` numbers from one row to the next.
struct MatrixView {
    float* data = nullptr;
    std::int64_t rows = 0, cols = 0, stride = 0;
    /// In place of `data`: an operand that is there in bf16 alone, or a result that is rounded to it, on a device whose products round. The
    /// stride is a multiple of 8.
    std::uint16_t* bf16 = nullptr;
};

namespace cpu {

/// C = alpha * op(A) op(B) + beta * C, fp32, all row-major; op is the transpose where the flag says so.
///
/// Bits depend on the shapes, strides and flags alone: never on the number of threads, on what else
/// runs, or (for a given A row) on beta = 0 garbage in C. With many threads the output is cut into
/// tiles of a fixed size. Inside a parallel_for body it runs on the calling thread.
void matmul(bool transpose_a, bool transpose_b, float alpha, const MatrixView& a, const MatrixView& b,
            float beta, const MatrixView& c);

/// What products of a transformer's backward pass in fp32 come to hold on the thread that asks for them, of operands in another order (on processors with
/// AVX-512): `width` numbers a token, matrices of up to 6 times that.
std::size_t turned_operand_bytes(std::int64_t width);

}  // namespace cpu

ATELIER_OP(matmul);

}  // namespace atelier::ops
