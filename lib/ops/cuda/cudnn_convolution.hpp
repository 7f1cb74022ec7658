#pragma once

#include "ops/convolution.hpp"

namespace atelier::ops::cuda {

/// cuDNN's convolutions of one picture, channels last, weights [out, kernel, kernel, in]; fp32 without tensor cores; one plan a shape,
/// made once and kept, of deterministic algorithms; as many zeros before as behind a row. No bias. Gradients are written.
void run_convolution(const ConvolutionShape& shape, const float* in, const float* weights, float* out);
void run_convolution_input_gradient(const ConvolutionShape& shape, const float* weights, const float* d_out, float* d_in);
void run_convolution_weight_gradient(const ConvolutionShape& shape, const float* in, const float* d_out, float* d_weights);

}  // namespace atelier::ops::cuda
