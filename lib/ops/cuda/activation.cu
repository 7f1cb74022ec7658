#include "ops/activation.hpp"

#include "ops/cuda/cast.hpp"
#include "ops/cuda/functions.hpp"
#include "ops/cuda/kernel.hpp"
#include "ops/cuda/sigmoid.hpp"

// Elementwise: each number is read and written once. Floor: (reads + writes) * 4 n bytes over the memory's bandwidth; reads and
// writes stand beside each operation below.
namespace atelier::ops::cuda {
namespace {

constexpr float root_half = 0.70710678118654752f, density = 0.3989422804014327f;  // 1 / sqrt(2), 1 / sqrt(2 pi)
// 0.5 x (1 + tanh u) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3)
constexpr float gelu_a = 1.5957691216057308f, gelu_b = 0.044715f;

struct Silu {
    static __device__ __forceinline__ float value(float x) { return x * sigmoid(x); }
    static __device__ __forceinline__ float gradient(float x, float dy) {
        const float s = sigmoid(x);
        return dy * (s * (1.0f + x * (1.0f - s)));
    }
};
struct GeluTanh {
    static __device__ __forceinline__ float value(float x) { return x * sigmoid(gelu_a * (x + gelu_b * x * x * x)); }
    static __device__ __forceinline__ float gradient(float x, float dy) {
        const float s = sigmoid(gelu_a * (x + gelu_b * x * x * x));
        const float slope = gelu_a * (1.0f + 3.0f * gelu_b * x * x);
        return dy * (s + x * s * (1.0f - s) * slope);
    }
};
struct GeluErf {
    static __device__ __forceinline__ float value(float x) { return 0.5f * x * (1.0f + erff(x * root_half)); }
    static __device__ __forceinline__ float gradient(float x, float dy) {
        return dy * (0.5f * (1.0f + erff(x * root_half)) + x * density * expf(-0.5f * x * x));
    }
};
struct Tanh {
    static __device__ __forceinline__ float value(float x) { return tanhf(x); }
    /// x: tanh's value, not its argument.
    static __device__ __forceinline__ float gradient(float x, float dy) { return dy * (1.0f - x * x); }
};

/// Numbers [i, i + N) of n: whole packs, then a tail one by one.
template <int N, typename F>
__global__ void forward_kernel(const float* x, float* y, std::int64_t n) {
    const std::int64_t i = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
    if (i + N <= n) {
        Pack<N> p = load<N>(x + i);
        for (int k = 0; k < N; ++k) p.v[k] = F::value(p.v[k]);
        store(y + i, p);
    } else {
        for (std::int64_t j = i; j < n; ++j) y[j] = F::value(x[j]);
    }
}

template <int N, typename F>
__global__ void backward_kernel(const float* x, const float* dy, float* dx, std::int64_t n) {
    const std::int64_t i = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
    if (i + N <= n) {
        const Pack<N> p = load<N>(x + i);
        Pack<N> d = load<N>(dy + i);
        for (int k = 0; k < N; ++k) d.v[k] = F::gradient(p.v[k], d.v[k]);
        store(dx + i, d);
    } else {
        for (std::int64_t j = i; j < n; ++j) dx[j] = F::gradient(x[j], dy[j]);
    }
}

template <typename F>
void forward(const float* x, float* y, std::int64_t n) {
    if (in_fours({}, {x, y}))
        launch(forward_kernel<4, F>, {ceil_div(n, 4 * max_block)}, max_block, 0, x, y, n);
    else
        launch(forward_kernel<1, F>, {ceil_div(n, max_block)}, max_block, 0, x, y, n);
}

template <typename F>
void backward(const float* x, const float* dy, float* dx, std::int64_t n) {
    if (in_fours({}, {x, dy, dx}))
        launch(backward_kernel<4, F>, {ceil_div(n, 4 * max_block)}, max_block, 0, x, dy, dx, n);
    else
        launch(backward_kernel<1, F>, {ceil_div(n, max_block)}, max_block, 0, x, dy, dx, n);
}

template <int N>
__global__ void add_kernel(const float* x, float* y, std::int64_t n) {
    const std::int64_t i = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
    if (i + N <= n) {
        const Pack<N> a = load<N>(x + i);
        Pack<N> b = load<N>(y + i);
        for (int k = 0; k < N; ++k) b.v[k] += a.v[k];
        store(y + i, b);
    } else {
        for (std::int64_t j = i; j < n; ++j) y[j] += x[j];
    }
}

/// A block a row.
template <int N, typename In, typename Out>
__global__ void swiglu_kernel(std::int64_t width, const In* gate, const In* value, std::int64_t stride, Out* y) {
    const std::int64_t row = blockIdx.x;
    for (std::int64_t j = threadIdx.x * N; j < width; j += blockDim.x * N) {
        const Pack<N> g = load<N>(gate + row * stride + j), v = load<N>(value + row * stride + j);
        Pack<N> out;
        for (int k = 0; k < N; ++k) out.v[k] = Silu::value(g.v[k]) * v.v[k];
        store(y + row * width + j, out);
    }
}

template <int N, typename In, typename Out>
__global__ void swiglu_backward_kernel(std::int64_t width, const In* gate, const In* value, std::int64_t stride, const In* dy,
                                       Out* dgate, Out* dvalue) {
    const std::int64_t row = blockIdx.x;
    for (std::int64_t j = threadIdx.x * N; j < width; j += blockDim.x * N) {
        const Pack<N> g = load<N>(gate + row * stride + j), v = load<N>(value + row * stride + j), up = load<N>(dy + row * width + j);
        Pack<N> dg, dv;
        for (int k = 0; k < N; ++k) {
            const float x = g.v[k], s = sigmoid(x);
            dg.v[k] = up.v[k] * v.v[k] * s * (1.0f + x * (1.0f - s));
            dv.v[k] = up.v[k] * x * s;
        }
        store(dgate + row * stride + j, dg);
        store(dvalue + row * stride + j, dv);
    }
}

}  // namespace

// Forward: 1 read, 1 write. Backward: 2 reads, 1 write.
void silu(const float* x, float* y, std::int64_t n) { forward<Silu>(x, y, n); }
void silu_backward(const float* x, const float* dy, float* dx, std::int64_t n) { backward<Silu>(x, dy, dx, n); }
void gelu_tanh(const float* x, float* y, std::int64_t n) { forward<GeluTanh>(x, y, n); }
void gelu_tanh_backward(const float* x, const float* dy, float* dx, std::int64_t n) { backward<GeluTanh>(x, dy, dx, n); }
void gelu_erf(const float* x, float* y, std::int64_t n) { forward<GeluErf>(x, y, n); }
void gelu_erf_backward(const float* x, const float* dy, float* dx, std::int64_t n) { backward<GeluErf>(x, dy, dx, n); }
void tanh(const float* x, float* y, std::int64_t n) { forward<Tanh>(x, y, n); }
void tanh_backward(const float* y, const float* dy, float* dx, std::int64_t n) { backward<Tanh>(y, dy, dx, n); }

// 2 reads, 1 write.
void add(const float* x, float* y, std::int64_t n) {
    if (in_fours({}, {x, y}))
        launch(add_kernel<4>, {ceil_div(n, 4 * max_block)}, max_block, 0, x, y, n);
    else
        launch(add_kernel<1>, {ceil_div(n, max_block)}, max_block, 0, x, y, n);
}

// n = rows * width: 2 reads, 1 write; a read or a write of bf16 counts half.
void swiglu(std::int64_t rows, std::int64_t width, Operand gate, Operand value, std::int64_t in_stride, OperandOut to) {
    with_addresses(gate, to, [&]<typename In, typename Out>(const In* gates, Out* y) {
        const In* values = address_of<In>(value);
        if (in_fours({width, in_stride}, {gates, values, y}))
            launch(swiglu_kernel<4, In, Out>, {rows}, row_threads(width, 4), 0, width, gates, values, in_stride, y);
        else
            launch(swiglu_kernel<1, In, Out>, {rows}, row_threads(width, 1), 0, width, gates, values, in_stride, y);
    });
}

// 3 reads, 2 writes, as above. `gradient` is of the type of gate and value.
void swiglu_backward(std::int64_t rows, std::int64_t width, Operand gate, Operand value, std::int64_t in_stride, Operand gradient,
                     OperandOut to_gate, OperandOut to_value) {
    with_addresses(gate, to_gate, [&]<typename In, typename Out>(const In* gates, Out* d_gates) {
        const In *values = address_of<In>(value), *dy = address_of<In>(gradient);
        Out* d_values = address_of<Out>(to_value);
        if (in_fours({width, in_stride}, {gates, values, dy, d_gates, d_values}))
            launch(swiglu_backward_kernel<4, In, Out>, {rows}, row_threads(width, 4), 0, width, gates, values, in_stride, dy, d_gates, d_values);
        else
            launch(swiglu_backward_kernel<1, In, Out>, {rows}, row_threads(width, 1), 0, width, gates, values, in_stride, dy, d_gates, d_values);
    });
}

}  // namespace atelier::ops::cuda
