#include "ops/convolution.hpp"

#include "ops/cuda/context.hpp"
#include "ops/cuda/cudnn_convolution.hpp"
#include "ops/cuda/functions.hpp"

// The models' weights are [out, in, kernel, kernel]; the library's are channels last, as the pictures.
namespace atelier::ops::cuda {
namespace {

std::int64_t weight_count(const ConvolutionShape& s) { return s.out_channels * s.in_channels * s.kernel * s.kernel; }

}  // namespace

void convolution(const ConvolutionShape& s, const float* in, const float* weights, const float* bias, float* out) {
    float* last = scratch_floats(weight_count(s));
    swap_inner_axes(s.out_channels, s.in_channels, s.kernel * s.kernel, weights, last, false);
    run_convolution(s, in, last, bias, out);
}

void convolution_backward(const ConvolutionShape& s, const float* in, const float* weights, const float* d_out, float* d_in,
                          float* d_weights, float* d_bias) {
    float* last = scratch_floats(weight_count(s));
    if (d_in != nullptr) {
        swap_inner_axes(s.out_channels, s.in_channels, s.kernel * s.kernel, weights, last, false);
        run_convolution_input_gradient(s, last, d_out, d_in);
    }
    run_convolution_weight_gradient(s, in, d_out, last);
    swap_inner_axes(s.out_channels, s.kernel * s.kernel, s.in_channels, last, d_weights, true);
    add_row_sums(s.out_height() * s.out_width(), s.out_channels, d_out, d_bias);
}

}  // namespace atelier::ops::cuda
