#include "ops/cuda/cast.hpp"
#include "ops/cuda/functions.hpp"
#include "ops/cuda/kernel.hpp"

namespace atelier::ops::cuda {
namespace {

constexpr std::int64_t norm_block = 1 << 14;  // numbers of one partial sum, as in optim/gradient_norm.cpp

/// `shadow` (null: none): the updated parameters in bf16, for products.
template <int N>
__global__ void adamw_kernel(std::int64_t n, AdamWFactors f, const float* gradient, float* parameter, float* m, float* v,
                             std::uint16_t* shadow) {
    const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
    if (first >= n) return;
    const Pack<N> g = load<N>(gradient + first);
    Pack<N> p = load<N>(parameter + first), m1 = load<N>(m + first), v1 = load<N>(v + first);
    for (int k = 0; k < N; ++k) {
        const float scaled = g.v[k] * f.gradient_scale;
        m1.v[k] = m1.v[k] + f.one_minus_beta1 * (scaled - m1.v[k]);
        v1.v[k] = f.beta2 * v1.v[k] + f.one_minus_beta2 * (scaled * scaled);
        const float denominator = sqrtf(v1.v[k]) * f.inverse_root_correction + f.epsilon;
        p.v[k] = p.v[k] * f.keep - f.step * (m1.v[k] / denominator);
    }
    if (shadow != nullptr) store(shadow + first, p);
    store(m + first, m1);
    store(v + first, v1);
    store(parameter + first, p);
}

struct ToBf16 {
    __device__ __forceinline__ float operator()(float x) const { return bf16_value(bf16_bits(x)); }
};
struct ToF16 {
    __device__ __forceinline__ float operator()(float x) const { return f16_value(f16_bits(x)); }
};
template <int N, typename Rounding>
__global__ void round_kernel(std::int64_t n, Rounding rounding, const float* from, float* to) {
    const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
    if (first >= n) return;
    Pack<N> p = load<N>(from + first);
    for (int k = 0; k < N; ++k) p.v[k] = rounding(p.v[k]);
    store(to + first, p);
}
template <typename Rounding>
void round_with(Rounding rounding, std::int64_t n, const float* from, float* to) {
    if (in_fours({n}, {from, to}))
        launch(round_kernel<4, Rounding>, {ceil_div(n, 4 * max_block)}, max_block, 0, n, rounding, from, to);
    else
        launch(round_kernel<1, Rounding>, {ceil_div(n, max_block)}, max_block, 0, n, rounding, from, to);
}

template <typename In>
__global__ void squares_kernel(std::int64_t n, const In* x, double* partial) {
    const std::int64_t first = blockIdx.x * norm_block, last = first + norm_block < n ? first + norm_block : n;
    double sum[1] = {0};
    for (std::int64_t i = first + threadIdx.x; i < last; i += blockDim.x) {
        const double value = load<1>(x + i).v[0];
        sum[0] += value * value;
    }
    block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum[0];
}

/// One block: thread t adds partial sums t, t + 256, … in order, then the threads' sums in the order of block_sum.
__global__ void add_partials_kernel(std::int64_t count, const double* partial, double* sum_out) {
    double sum[1] = {0};
    for (std::int64_t i = threadIdx.x; i < count; i += blockDim.x) sum[0] += partial[i];
    block_sum(sum);
    if (threadIdx.x == 0) *sum_out = sum[0];
}

}  // namespace

// Floor: 7 * 4 n bytes (gradient, parameter and moments read; parameter and moments written), 30 n with a bf16 copy.
void adamw(std::int64_t n, AdamWFactors f, const float* gradient, float* parameter, float* m, float* v, std::uint16_t* shadow) {
    if (in_fours({n}, {gradient, parameter, m, v}) && reinterpret_cast<std::uintptr_t>(shadow) % 8 == 0)
        launch(adamw_kernel<4>, {ceil_div(n, 4 * max_block)}, max_block, 0, n, f, gradient, parameter, m, v, shadow);
    else
        launch(adamw_kernel<1>, {ceil_div(n, max_block)}, max_block, 0, n, f, gradient, parameter, m, v, shadow);
}

// Floor: 2 * 4 n bytes.
void round_to(DType dtype, std::int64_t n, const float* from, float* to) {
    ATELIER_CHECK(dtype == DType::bf16 || dtype == DType::f16, "numbers are rounded to bf16 or f16, found {}", name_of(dtype));
    if (dtype == DType::bf16)
        round_with(ToBf16{}, n, from, to);
    else
        round_with(ToF16{}, n, from, to);
}

// Floor: 4 n bytes, 2 n of bf16.
void sum_of_squares(std::int64_t n, Operand numbers, double* sum) {
    const std::int64_t blocks = ceil_div(n, norm_block);
    double* partial = scratch_doubles(blocks);
    with_address(numbers, [&]<typename In>(const In* x) { launch(squares_kernel<In>, {blocks}, max_block, 0, n, x, partial); });
    launch(add_partials_kernel, {1}, max_block, 0, blocks, partial, sum);
}

}  // namespace atelier::ops::cuda
