#pragma once

#include <array>
#include <span>

#include "nn/parameters.hpp"

// Products with matrices of a parameter table, with the adapter's share where the weights have one:
// y = x W^T + scale (x A^T) B^T. What is frozen gets no gradient.
//
// x and dy are fp32, or bf16 on a device whose products round. Where products take bf16 (ops/precision.hpp) fp32 is rounded in place; weights
// already are. An adapter's own matrices, and its inner numbers, lie in memory as fp32; on a CPU its products take them so, on a device whose
// products round they are rounded as they are read, like any operand, into fp32 sums and results.
namespace atelier::nn {

/// Several matrices [N, K] of one input, as one product where they follow one another in memory, else one by one.
/// x [R, K]; y [R, n N] with the results side by side, in the order of `rows`.
void project(const ParameterStore& weights, std::span<const int> rows, const Tensor& x, const Tensor& y);
inline void project(const ParameterStore& weights, int row, const Tensor& x, const Tensor& y) {
    project(weights, std::array{row}, x, y);
}

/// Gradients of the matrices, or of their adapters, are added to; dx [R, K] is written, or added to with `accumulate`, or nobody
/// wants it (empty); it may be x's memory. dy as y. Rows are summed in a fixed order.
void project_backward(const ParameterStore& weights, const ParameterStore& gradients, std::span<const int> rows,
                      const Tensor& x, const Tensor& dy, const Tensor& dx, bool accumulate = false);
inline void project_backward(const ParameterStore& weights, const ParameterStore& gradients, int row, const Tensor& x,
                             const Tensor& dy, const Tensor& dx, bool accumulate = false) {
    project_backward(weights, gradients, std::array{row}, x, dy, dx, accumulate);
}

/// Where the gradient of a vector (a norm's weight) is added to.
float* vector_gradient(const ParameterStore& gradients, int row);

}  // namespace atelier::nn
