#pragma once

#include <cstdint>

#include "ops/dispatch.hpp"
#include "ops/operand.hpp"

namespace atelier::ops {

namespace cpu {

/// Elementwise over n numbers; y may be x, dx may be dy. Backward functions take the input x.
void silu(const float* x, float* y, std::int64_t n);
void silu_backward(const float* x, const float* dy, float* dx, std::int64_t n);
/// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
void gelu_tanh(const float* x, float* y, std::int64_t n);
void gelu_tanh_backward(const float* x, const float* dy, float* dx, std::int64_t n);
/// 0.5 x (1 + erf(x / sqrt 2))
void gelu_erf(const float* x, float* y, std::int64_t n);
void gelu_erf_backward(const float* x, const float* dy, float* dx, std::int64_t n);
void tanh(const float* x, float* y, std::int64_t n);
/// Takes tanh's value y: dx = dy (1 - y^2).
void tanh_backward(const float* y, const float* dy, float* dx, std::int64_t n);

/// SwiGLU by rows: y = silu(gate) * value; rows of `width` numbers, `in_stride` apart in gate and value (so that
/// both may lie in one packed buffer), contiguous in y.
void swiglu(std::int64_t rows, std::int64_t width, Operand gate, Operand value, std::int64_t in_stride, OperandOut y);
/// dgate and dvalue by `in_stride`; dy contiguous.
void swiglu_backward(std::int64_t rows, std::int64_t width, Operand gate, Operand value, std::int64_t in_stride, Operand dy, OperandOut dgate,
                     OperandOut dvalue);

/// y += x
void add(const float* x, float* y, std::int64_t n);

}  // namespace cpu

ATELIER_OP(silu);
ATELIER_OP(silu_backward);
ATELIER_OP(gelu_tanh);
ATELIER_OP(gelu_tanh_backward);
ATELIER_OP(gelu_erf);
ATELIER_OP(gelu_erf_backward);
ATELIER_OP(tanh);
ATELIER_OP(tanh_backward);
ATELIER_OP(swiglu);
ATELIER_OP(swiglu_backward);
ATELIER_OP(add);

}  // namespace atelier::ops
