#pragma once

#include <filesystem>
#include <functional>

#include "core/device.hpp"
#include "core/process.hpp"
#include "ops/activation.hpp"
#include "ops/attention.hpp"
#include "ops/convolution.hpp"
#include "ops/decode.hpp"
#include "ops/linear.hpp"
#include "ops/matmul.hpp"
#include "ops/modulation.hpp"
#include "ops/norm.hpp"
#include "ops/picture.hpp"
#include "ops/precision.hpp"
#include "ops/rope.hpp"
#include "ops/rows.hpp"

// The CUDA backend is a library that is loaded when a configuration says device = "cuda": programs need no driver, no CUDA library
// and no start-up time for it otherwise.
namespace atelier::ops {

/// Every operation that has a twin of the same signature on the device.
#define ATELIER_OPS(X)                                                                                                      \
    X(silu) X(silu_backward) X(gelu_tanh) X(gelu_tanh_backward) X(gelu_erf) X(gelu_erf_backward) X(tanh) X(tanh_backward)   \
    X(swiglu) X(swiglu_backward) X(add)                                                                                     \
    X(layer_norm_modulate) X(layer_norm_modulate_backward) X(gate_residual) X(gate_residual_norm_modulate)                  \
    X(gate_residual_backward)                                                                                                \
    X(rms_norm) X(rms_norm_backward) X(layer_norm) X(layer_norm_backward)                                                   \
    X(qk_norm_rope) X(qk_norm_rope_workspace) X(qk_norm_rope_backward) X(rope_half) X(rope_half_backward)                   \
    X(fill_zero) X(copy_columns) X(add_columns) X(gather_rows) X(scatter_rows) X(add_to_rows) X(add_blend_of_rows)          \
    X(channel_norm) X(upsample_nearest) X(add_average_down) X(add_duplicate_up)                                             \
    X(matmul) X(linear) X(linear_backward_input) X(linear_backward_weight)                                                  \
    X(attention_workspace) X(attention_backward_workspace) X(attention) X(attention_backward)                                                               \
    X(linear_rows) X(append_rows) X(decode_attention)

/// Factors of x' = on_x x + on_v v + std noise, as flow::Transition in fp32.
struct Transition {
    float on_x = 1, on_v = 0, std = 0;
};

/// Factors of one AdamW update, as optim/adamw.cpp computes them; keep = 1 - rate * weight_decay.
struct AdamWFactors {
    float gradient_scale, one_minus_beta1, beta2, one_minus_beta2, step, inverse_root_correction, epsilon, keep;
};

/// What a backend brings. Pointers are device memory unless said otherwise; sums come in fp64, one a sample of n numbers, added in an
/// order that depends on n alone.
struct Backend {
#define ATELIER_MEMBER(name) decltype(&cpu::name) name = nullptr;  // NOLINT(bugprone-macro-parentheses): a member's name
    ATELIER_OPS(ATELIER_MEMBER)
#undef ATELIER_MEMBER
    DeviceMemory* memory = nullptr;
    const char* device_name = nullptr;
    void (*set_product_precision)(ProductPrecision) = nullptr;
    /// Keeps a bf16 copy of these fp32 weights for products that take them as an operand, until it is told to forget it (n = 0).
    void (*keep_bf16_copy)(const float* weights, std::int64_t n) = nullptr;
    /// The copy follows weights that were written by anything but `adamw`.
    void (*refresh_bf16_copy)(const float* weights) = nullptr;

    /// Records what `work` queues, kernels and copies within the device's memory alone, with the addresses that it uses; nothing runs.
    /// Launching gives false, and does nothing, where scratch memory of the recording has moved since.
    void* (*record_graph)(const std::function<void()>& work) = nullptr;
    bool (*launch_graph)(void* graph) = nullptr;
    void (*release_graph)(void* graph) = nullptr;

    /// As flow::guide and flow::guide_backward, [tokens, channels].
    void (*guide)(std::int64_t tokens, std::int64_t channels, float scale, bool rescale, const float* conditional, const float* unconditional,
                  float* out) = nullptr;
    void (*guide_backward)(std::int64_t tokens, std::int64_t channels, float scale, bool rescale, const float* conditional,
                           const float* unconditional, const float* d_out, float* d_conditional, float* d_unconditional) = nullptr;
    /// x_next of `samples` samples; with `squares` [samples] (device memory) also the sum of (x_next - mean)^2 of what was stored.
    /// noise null: std is 0 and squares null.
    void (*sampler_step)(std::int64_t samples, std::int64_t n, Transition, const float* x, const float* v, const float* noise, float* x_next,
                         double* squares) = nullptr;
    void (*squared_residuals)(std::int64_t samples, std::int64_t n, Transition, const float* x, const float* v, const float* x_next,
                              double* squares) = nullptr;
    /// d_v += factor (x_next - mean)
    void (*residual_gradient)(std::int64_t n, Transition, float factor, const float* x, const float* v, const float* x_next,
                              float* d_v) = nullptr;
    /// sum of noise (std noise - (x_next - mean)), rl/objective.hpp
    void (*guard_sums)(std::int64_t samples, std::int64_t n, Transition, const float* x, const float* v, const float* x_next,
                       const float* noise, double* sums) = nullptr;
    void (*squared_differences)(std::int64_t samples, std::int64_t n, const float* a, const float* b, double* squares) = nullptr;
    /// d += factor (a - b), b null: factor a
    void (*difference_gradient)(std::int64_t n, float factor, const float* a, const float* b, float* d) = nullptr;
    /// shadow null or the bf16 copy of `parameter`, updated with it.
    void (*adamw)(std::int64_t n, AdamWFactors, const float* gradient, float* parameter, float* m, float* v,
                  std::uint16_t* shadow) = nullptr;
    void (*sum_of_squares)(std::int64_t n, Operand x, double* sum) = nullptr;
    /// As TrainableConvolution::forward and backward (ops/convolution.hpp); fp32, channels last.
    void (*convolution)(const ConvolutionShape&, const float* in, const float* weights, const float* bias, float* out) = nullptr;
    void (*convolution_backward)(const ConvolutionShape&, const float* in, const float* weights, const float* d_out, float* d_in,
                                 float* d_weights, float* d_bias) = nullptr;
    /// The stream of the computation (a cudaStream_t), for collectives.
    void* (*compute_stream)() = nullptr;
    /// to = from rounded to bf16 or f16 (nearest even); they may be the same.
    void (*round_to)(DType dtype, std::int64_t n, const float* from, float* to) = nullptr;
    /// The bf16 copy of a number that keep_bf16_copy covers, else null.
    std::uint16_t* (*bf16_copy_of)(const float* weight) = nullptr;
};

/// What a backend library exports as `atelier_backend`: its table, for the process that asks. Throws Error(usage) where there is no
/// device or no driver.
using BackendEntry = const Backend* (*)(const Process& process);

/// Loads the backend library (once): ATELIER_CUDA_BACKEND if set, else ../lib/libatelier_cuda.so beside the program. Throws
/// Error(usage) that says which file or device is missing.
const Backend& load_backend();
/// The loaded one. Throws Error(internal) if there is none.
const Backend& backend();

/// One number of its device memory, for sums; taken at the first use.
double* device_sum();
/// The number that `queue(double*)` leaves there.
template <typename Queue>
double sum_from_device(Queue&& queue) {
    queue(device_sum());
    double sum = 0;
    device_memory().to_host(&sum, device_sum(), sizeof(sum));
    return sum;
}

}  // namespace atelier::ops
