#include "ops/rows.hpp"

#include "ops/cuda/cast.hpp"
#include "ops/cuda/columns.hpp"
#include "ops/cuda/device_memory.hpp"
#include "ops/cuda/functions.hpp"
#include "ops/cuda/kernel.hpp"

// Copies: each number is read once and written once (add_columns: read twice). Floor: 2 (3) * 4 n bytes, 2 of the 4 where a side is bf16.
namespace atelier::ops::cuda {
namespace {

template <int N, bool add, typename In, typename Out>
__global__ void columns_kernel(std::int64_t width, const In* in, std::int64_t in_stride, Out* out, std::int64_t out_stride) {
    const std::int64_t row = blockIdx.x;
    for (std::int64_t j = threadIdx.x * N; j < width; j += blockDim.x * N) {
        Pack<N> p = load<N>(in + row * in_stride + j);
        if constexpr (add) {
            const Pack<N> before = load<N>(out + row * out_stride + j);
            for (int k = 0; k < N; ++k) p.v[k] = before.v[k] + p.v[k];
        }
        store(out + row * out_stride + j, p);
    }
}

// Numbers of a row that a block takes at a time where there is one row alone.
constexpr std::int64_t piece_of_row = 4096;

template <bool add, typename In, typename Out>
void columns(std::int64_t rows, std::int64_t width, const In* in, std::int64_t in_stride, Out* out, std::int64_t out_stride) {
    if (rows == 1 && width > piece_of_row) {  // in pieces, so that the grid has many blocks
        const std::int64_t pieces = width / piece_of_row, done = pieces * piece_of_row;
        columns<add>(pieces, piece_of_row, in, piece_of_row, out, piece_of_row);
        if (done < width) columns<add>(1, width - done, in + done, in_stride, out + done, out_stride);
        return;
    }
    if (in_fours({width, in_stride, out_stride}, {in, out}))
        launch(columns_kernel<4, add, In, Out>, {rows}, row_threads(width, 4), 0, width, in, in_stride, out, out_stride);
    else
        launch(columns_kernel<1, add, In, Out>, {rows}, row_threads(width, 1), 0, width, in, in_stride, out, out_stride);
}

__global__ void zero_kernel(std::int64_t width, float* out, std::int64_t stride) {
    for (std::int64_t j = threadIdx.x; j < width; j += blockDim.x) out[blockIdx.x * stride + j] = 0;
}

template <int N>
__global__ void gather_kernel(std::int64_t width, const std::int32_t* source, const float* a, const float* b, float* out) {
    const std::int64_t row = blockIdx.x, from = source[row];
    const float* in = from >= 0 ? a + from * width : b + (-1 - from) * width;
    for (std::int64_t j = threadIdx.x * N; j < width; j += blockDim.x * N) store(out + row * width + j, load<N>(in + j));
}

template <int N>
__global__ void scatter_kernel(std::int64_t width, const std::int32_t* source, const float* in, float* a, float* b) {
    const std::int64_t row = blockIdx.x, to = source[row];
    float* out = to >= 0 ? a + to * width : b + (-1 - to) * width;
    for (std::int64_t j = threadIdx.x * N; j < width; j += blockDim.x * N) store(out + j, load<N>(in + row * width + j));
}

/// A block a row of `in`.
template <int N>
__global__ void add_to_rows_kernel(std::int64_t width, const std::int32_t* target, const float* in, float* out) {
    const std::int64_t row = blockIdx.x;
    float* y = out + target[row] * width;
    for (std::int64_t j = threadIdx.x * N; j < width; j += blockDim.x * N) {
        const Pack<N> p = load<N>(in + row * width + j);
        Pack<N> sum = load<N>(y + j);
        for (int k = 0; k < N; ++k) sum.v[k] += p.v[k];
        store(y + j, sum);
    }
}

template <int N>
__global__ void add_blend_kernel(std::int64_t width, const std::int32_t* source, const float* share, const float* table, float* out) {
    const std::int64_t row = blockIdx.x;
    const std::int32_t* from = source + 4 * row;
    const float* s = share + 4 * row;
    for (std::int64_t j = threadIdx.x * N; j < width; j += blockDim.x * N) {
        const Pack<N> a = load<N>(table + from[0] * width + j), b = load<N>(table + from[1] * width + j);
        const Pack<N> c = load<N>(table + from[2] * width + j), d = load<N>(table + from[3] * width + j);
        Pack<N> sum = load<N>(out + row * width + j);
        for (int k = 0; k < N; ++k) sum.v[k] += s[0] * a.v[k] + s[1] * b.v[k] + s[2] * c.v[k] + s[3] * d.v[k];
        store(out + row * width + j, sum);
    }
}

/// out[r, j, i] = in[r, i, j] (or added), a thread an output.
template <bool add>
__global__ void swap_kernel(std::int64_t n, std::int64_t a, std::int64_t b, const float* in, float* out) {
    const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= n) return;
    const std::int64_t row = at / (a * b), j = at / a % b, i = at % a;
    const float value = in[(row * a + i) * b + j];
    out[at] = add ? out[at] + value : value;
}

}  // namespace

void fill_zero(float* out, std::int64_t n) { memory().zero(out, static_cast<std::size_t>(n) * sizeof(float)); }

void zero_columns(std::int64_t rows, std::int64_t width, float* out, std::int64_t stride) {
    launch(zero_kernel, {rows}, row_threads(width, 1), 0, width, out, stride);
}

// Floor: 4 n bytes.
void add_row_sums(std::int64_t rows, std::int64_t width, const float* x, float* out) { finish_columns(1, rows, width, 0, x, out); }

void copy_columns(std::int64_t rows, std::int64_t width, Operand in, std::int64_t in_stride, OperandOut out, std::int64_t out_stride) {
    with_address(in, [&](const auto* from) {
        with_address(out, [&](auto* to) { columns<false>(rows, width, from, in_stride, to, out_stride); });
    });
}
void add_columns(std::int64_t rows, std::int64_t width, Operand in, std::int64_t in_stride, float* out, std::int64_t out_stride) {
    with_address(in, [&](const auto* from) { columns<true>(rows, width, from, in_stride, out, out_stride); });
}

void add_to_each_row(std::int64_t rows, std::int64_t width, const float* x, float* out) { columns<true>(rows, width, x, std::int64_t{0}, out, width); }

void gather_rows(std::int64_t rows, std::int64_t width, const std::int32_t* source, const float* a, const float* b, float* out) {
    if (in_fours({width}, {a, b, out}))
        launch(gather_kernel<4>, {rows}, row_threads(width, 4), 0, width, source, a, b, out);
    else
        launch(gather_kernel<1>, {rows}, row_threads(width, 1), 0, width, source, a, b, out);
}
void scatter_rows(std::int64_t rows, std::int64_t width, const std::int32_t* source, const float* in, float* a, float* b) {
    if (in_fours({width}, {in, a, b}))
        launch(scatter_kernel<4>, {rows}, row_threads(width, 4), 0, width, source, in, a, b);
    else
        launch(scatter_kernel<1>, {rows}, row_threads(width, 1), 0, width, source, in, a, b);
}

// Floor: 3 * 4 n bytes.
void add_to_rows(std::int64_t rows, std::int64_t width, const std::int32_t* target, const float* in, float* out) {
    if (in_fours({width}, {in, out}))
        launch(add_to_rows_kernel<4>, {rows}, row_threads(width, 4), 0, width, target, in, out);
    else
        launch(add_to_rows_kernel<1>, {rows}, row_threads(width, 1), 0, width, target, in, out);
}

// Floor: 2 * 4 n bytes and the table once; neighbouring patches find most of its rows in the cache.
void add_blend_of_rows(std::int64_t rows, std::int64_t width, const std::int32_t* source, const float* share, const float* table, float* out) {
    if (in_fours({width}, {table, out}))
        launch(add_blend_kernel<4>, {rows}, row_threads(width, 4), 0, width, source, share, table, out);
    else
        launch(add_blend_kernel<1>, {rows}, row_threads(width, 1), 0, width, source, share, table, out);
}

void swap_inner_axes(std::int64_t rows, std::int64_t a, std::int64_t b, const float* in, float* out, bool add) {
    const std::int64_t n = rows * a * b;
    if (add)
        launch(swap_kernel<true>, {ceil_div(n, max_block)}, max_block, 0, n, a, b, in, out);
    else
        launch(swap_kernel<false>, {ceil_div(n, max_block)}, max_block, 0, n, a, b, in, out);
}

}  // namespace atelier::ops::cuda
