#pragma once

#include "core/tensor.hpp"
#include "ops/dispatch.hpp"

namespace atelier::ops {

namespace cpu {

/// y = x W^T (+ bias): x [M, K], weight [N, K], bias [N] or empty, y [M, N]. On a device whose products round the weight may be in bf16.
void linear(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y);

/// dx = dy W (added to dx if `accumulate`): dy [M, N], weight [N, K], dx [M, K].
void linear_backward_input(const Tensor& dy, const Tensor& weight, const Tensor& dx, bool accumulate);

/// dW += dy^T x, dbias += sum of dy's rows (dbias empty: skipped). Rows are summed in a fixed order.
void linear_backward_weight(const Tensor& dy, const Tensor& x, const Tensor& dweight, const Tensor& dbias);

}  // namespace cpu

ATELIER_OP(linear);
ATELIER_OP(linear_backward_input);
ATELIER_OP(linear_backward_weight);

}  // namespace atelier::ops
