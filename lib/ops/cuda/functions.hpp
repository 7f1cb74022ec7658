#pragma once

#include <functional>

#include "ops/backend.hpp"

// Declarations of the device's functions: the twins of ops::cpu, and what else the table of ops/backend.hpp holds.
namespace atelier::ops::cuda {

#define ATELIER_DECLARE(name) decltype(cpu::name) name;
ATELIER_OPS(ATELIER_DECLARE)
#undef ATELIER_DECLARE

/// ops/backend.hpp
void* record_graph(const std::function<void()>& work);
bool launch_graph(void* graph);
void release_graph(void* graph);
void guide(std::int64_t tokens, std::int64_t channels, float scale, bool rescale, const float* conditional, const float* unconditional, float* out);
void guide_backward(std::int64_t tokens, std::int64_t channels, float scale, bool rescale, const float* conditional,
                    const float* unconditional, const float* d_out, float* d_conditional, float* d_unconditional);
void sampler_step(std::int64_t samples, std::int64_t n, Transition t, const float* x, const float* v, const float* noise, float* x_next,
                  double* squares);
void squared_residuals(std::int64_t samples, std::int64_t n, Transition t, const float* x, const float* v, const float* x_next,
                       double* squares);
void residual_gradient(std::int64_t n, Transition t, float factor, const float* x, const float* v, const float* x_next, float* d_v);
void guard_sums(std::int64_t samples, std::int64_t n, Transition t, const float* x, const float* v, const float* x_next, const float* noise,
                double* sums);
void squared_differences(std::int64_t samples, std::int64_t n, const float* a, const float* b, double* squares);
void difference_gradient(std::int64_t n, float factor, const float* a, const float* b, float* d);
void adamw(std::int64_t n, AdamWFactors f, const float* gradient, float* parameter, float* m, float* v, std::uint16_t* shadow);
void round_to(DType dtype, std::int64_t n, const float* from, float* to);
void sum_of_squares(std::int64_t n, Operand x, double* sum);
/// Row i of out += x, for every i.
void add_to_each_row(std::int64_t rows, std::int64_t width, const float* x, float* out);
/// out[j] += sum over rows of x[i, j], rows in a fixed order; and rows of `width` zeros, `stride` apart.
void add_row_sums(std::int64_t rows, std::int64_t width, const float* x, float* out);
void zero_columns(std::int64_t rows, std::int64_t width, float* out, std::int64_t stride);
/// [rows, a, b] -> [rows, b, a], written or added.
void swap_inner_axes(std::int64_t rows, std::int64_t a, std::int64_t b, const float* in, float* out, bool add);
void convolution(const ConvolutionShape& shape, const float* in, const float* weights, const float* bias, float* out);
void convolution_backward(const ConvolutionShape& shape, const float* in, const float* weights, const float* d_out, float* d_in,
                          float* d_weights, float* d_bias);

}  // namespace atelier::ops::cuda
