#pragma once

#include <span>

#include "nn/parameters.hpp"

namespace atelier::dit {

/// Several matrices [N, K] of one input as one product where they follow one another in memory, else one by one.
/// x [R, K]; y [R, n N] with the results side by side, in the order of `rows`.
void project(const nn::ParameterStore& weights, std::span<const int> rows, const Tensor& x, const Tensor& y);

/// dx [R, K] is written, gradients of the matrices are added to.
void project_backward(const nn::ParameterStore& weights, const nn::ParameterStore& gradients,
                      std::span<const int> rows, const Tensor& x, const Tensor& dy, const Tensor& dx);

}  // namespace atelier::dit
