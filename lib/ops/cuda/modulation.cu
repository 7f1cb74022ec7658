#include "ops/modulation.hpp"

#include "ops/cuda/cast.hpp"
#include "ops/cuda/columns.hpp"
#include "ops/cuda/functions.hpp"
#include "ops/cuda/kernel.hpp"
#include "ops/cuda/row_moments.hpp"

// n = groups * rows * width numbers.
namespace atelier::ops::cuda {
namespace {

/// A row's group. A block takes a row, so that both are within 31 bits: a quotient of 64 takes a hundred instructions.
__device__ __forceinline__ std::int64_t group_of(const ModulationShape& s, std::int64_t row) {
    return static_cast<unsigned>(row) / static_cast<unsigned>(s.rows);
}

/// The norm of a block's row and its modulation.
template <int N, int I, typename Out>
__device__ __forceinline__ void norm_row(const ModulationShape& s, const Row<N, I>& numbers, const float* scale, Out* y, float* mean,
                                         float* inverse_std) {
    const std::int64_t row = blockIdx.x;
    const float* m = scale + group_of(s, row) * s.mod_stride;
    const RowMoments moments = numbers.moments(s.eps);
    numbers.each([&](std::int64_t j, Pack<N> p) {
        const Pack<N> factor = load<N>(m + j);
        for (int k = 0; k < N; ++k) p.v[k] = (p.v[k] - moments.mean) * moments.inverse_std * (1.0f + factor.v[k]);
        store(y + row * s.width + j, p);
    });
    if (threadIdx.x == 0) {
        mean[row] = moments.mean;
        inverse_std[row] = moments.inverse_std;
    }
}

/// A block a row.
template <int N, int I, typename Out>
__global__ void layer_norm_modulate_kernel(ModulationShape s, const float* x, const float* scale, Out* y, float* mean,
                                           float* inverse_std) {
    norm_row(s, Row<N, I>(x + blockIdx.x * s.width, s.width), scale, y, mean, inverse_std);
}

/// A block a row.
template <int N, int I, typename In, typename Out>
__global__ void gate_residual_norm_modulate_kernel(ModulationShape s, const float* x, const float* gate, const In* branch, float* y,
                                                   const float* scale, Out* normed, float* mean, float* inverse_std) {
    const std::int64_t row = blockIdx.x, at = row * s.width;
    const float* g = gate + group_of(s, row) * s.mod_stride;
    const Row<N, I> sums(x + at, s.width, y + at, [&](std::int64_t j, Pack<N> p) {
        const Pack<N> factor = load<N>(g + j), b = load<N>(branch + at + j);
        for (int k = 0; k < N; ++k) p.v[k] += factor.v[k] * b.v[k];
        return p;
    });
    norm_row(s, sums, scale, normed, mean, inverse_std);
}

/// A block takes a chunk of rows: dx at once, its share of dscale into a row of `partial`.
template <int N, typename In>
__global__ void layer_norm_modulate_backward_kernel(ModulationShape s, std::int64_t chunk_rows, const float* x, const float* scale,
                                                    const float* mean, const float* inverse_std, const In* dy, float* dx,
                                                    float* partial) {
    ATELIER_DYNAMIC_SHARED(float, dscale);  // [width]; each thread has its own columns
    const std::int64_t group = blockIdx.y, first = blockIdx.x * chunk_rows;
    const std::int64_t last = first + chunk_rows < s.rows ? first + chunk_rows : s.rows;
    const float* m = scale + group * s.mod_stride;
    const float count = static_cast<float>(s.width);
    for (std::int64_t j = threadIdx.x * N; j < s.width; j += blockDim.x * N)
        for (int k = 0; k < N; ++k) dscale[j + k] = 0;
    for (std::int64_t i = first; i < last; ++i) {
        const std::int64_t row = group * s.rows + i, at = row * s.width;
        const float mu = mean[row], inverse = inverse_std[row];
        float sums[2] = {0, 0};
        for (std::int64_t j = threadIdx.x * N; j < s.width; j += blockDim.x * N) {
            const Pack<N> p = load<N>(x + at + j), g = load<N>(dy + at + j), factor = load<N>(m + j);
            for (int k = 0; k < N; ++k) {
                const float normed = (p.v[k] - mu) * inverse, d = g.v[k] * (1.0f + factor.v[k]);
                dscale[j + k] += g.v[k] * normed;
                sums[0] += d;
                sums[1] += d * normed;
            }
        }
        block_sum(sums);
        const float sum = sums[0] / count, dot = sums[1] / count;
        for (std::int64_t j = threadIdx.x * N; j < s.width; j += blockDim.x * N) {
            const Pack<N> p = load<N>(x + at + j), g = load<N>(dy + at + j), factor = load<N>(m + j);
            Pack<N> out = load<N>(dx + at + j);
            for (int k = 0; k < N; ++k)
                out.v[k] += (g.v[k] * (1.0f + factor.v[k]) - sum - (p.v[k] - mu) * inverse * dot) * inverse;
            store(dx + at + j, out);
        }
    }
    float* mine = partial + (group * gridDim.x + blockIdx.x) * s.width;
    for (std::int64_t j = threadIdx.x * N; j < s.width; j += blockDim.x * N)
        for (int k = 0; k < N; ++k) mine[j + k] = dscale[j + k];
}

template <int N, typename In>
__global__ void gate_residual_kernel(ModulationShape s, const float* x, const float* gate, const In* branch, float* y) {
    const std::int64_t row = blockIdx.x, at = row * s.width;
    const float* g = gate + group_of(s, row) * s.mod_stride;
    for (std::int64_t j = threadIdx.x * N; j < s.width; j += blockDim.x * N) {
        Pack<N> p = load<N>(x + at + j);
        const Pack<N> factor = load<N>(g + j), b = load<N>(branch + at + j);
        for (int k = 0; k < N; ++k) p.v[k] += factor.v[k] * b.v[k];
        store(y + at + j, p);
    }
}

template <int N, typename In, typename Out>
__global__ void gate_residual_backward_kernel(ModulationShape s, std::int64_t chunk_rows, const float* gate, const In* branch,
                                              const float* dy, Out* dbranch, float* partial) {
    const std::int64_t group = blockIdx.y, first = blockIdx.x * chunk_rows;
    const std::int64_t last = first + chunk_rows < s.rows ? first + chunk_rows : s.rows;
    float* mine = partial + (group * gridDim.x + blockIdx.x) * s.width;
    for (std::int64_t j = threadIdx.x * N; j < s.width; j += blockDim.x * N) {
        const Pack<N> factor = load<N>(gate + group * s.mod_stride + j);
        float sums[N] = {};
        for (std::int64_t i = first; i < last; ++i) {
            const std::int64_t at = (group * s.rows + i) * s.width + j;
            const Pack<N> b = load<N>(branch + at);
            Pack<N> g = load<N>(dy + at);
            for (int k = 0; k < N; ++k) {
                sums[k] += g.v[k] * b.v[k];
                g.v[k] *= factor.v[k];
            }
            store(dbranch + at, g);
        }
        for (int k = 0; k < N; ++k) mine[j + k] = sums[k];
    }
}

void check_width(const ModulationShape& s) {
    ATELIER_CHECK(s.width <= max_row, "a modulation's gradient over rows of {} numbers (at most {})", s.width, max_row);
}

}  // namespace

// Floor: 2 * 4 n bytes, 6 n to bf16.
void layer_norm_modulate(const ModulationShape& s, const float* x, const float* scale, OperandOut to, float* mean, float* inverse_std) {
    const std::int64_t rows = s.groups * s.rows;
    with_address(to, [&]<typename Out>(Out* y) {
        const auto run = [&]<int N>() {
            with_kept_packs(s.width, N, [&]<int I>() {
                launch(layer_norm_modulate_kernel<N, I, Out>, {rows}, row_threads(s.width, N), 0, s, x, scale, y, mean, inverse_std);
            });
        };
        if (in_fours({s.width, s.mod_stride}, {x, scale, y})) run.template operator()<4>();
        else run.template operator()<1>();
    });
}

// Floor: 4 * 4 n bytes (x, dy, dx read; dx written), 14 n of bf16; the partial sums add 2 / rows of a chunk of n.
void layer_norm_modulate_backward(const ModulationShape& s, const float* x, const float* scale, const float* mean,
                                  const float* inverse_std, Operand gradient, float* dx, float* dscale) {
    check_width(s);
    const Chunks chunks(s.groups, s.rows);
    float* partial = scratch_floats(s.groups * chunks.count * s.width);
    const Grid grid{chunks.count, s.groups};
    const std::size_t shared = static_cast<std::size_t>(s.width) * sizeof(float);
    with_address(gradient, [&]<typename In>(const In* dy) {
        if (in_fours({s.width, s.mod_stride}, {x, scale, dy, dx}))
            launch(layer_norm_modulate_backward_kernel<4, In>, grid, row_threads(s.width, 4), shared, s, chunks.rows, x, scale, mean, inverse_std,
                   dy, dx, partial);
        else
            launch(layer_norm_modulate_backward_kernel<1, In>, grid, row_threads(s.width, 1), shared, s, chunks.rows, x, scale, mean, inverse_std,
                   dy, dx, partial);
    });
    finish_columns(s.groups, chunks.count, s.width, s.mod_stride, partial, dscale);
}

// Floor: 3 * 4 n bytes, 10 n of bf16.
void gate_residual(const ModulationShape& s, const float* x, const float* gate, Operand added, float* y) {
    const std::int64_t rows = s.groups * s.rows;
    with_address(added, [&]<typename In>(const In* branch) {
        if (in_fours({s.width, s.mod_stride}, {x, gate, branch, y}))
            launch(gate_residual_kernel<4, In>, {rows}, row_threads(s.width, 4), 0, s, x, gate, branch, y);
        else
            launch(gate_residual_kernel<1, In>, {rows}, row_threads(s.width, 1), 0, s, x, gate, branch, y);
    });
}

// Floor: 4 * 4 n bytes, 14 n to bf16, 12 n of bf16 to bf16.
void gate_residual_norm_modulate(const ModulationShape& s, const float* x, const float* gate, Operand added, float* y, const float* scale,
                                 OperandOut to, float* mean, float* inverse_std) {
    const std::int64_t rows = s.groups * s.rows;
    with_addresses(added, to, [&]<typename In, typename Out>(const In* branch, Out* normed) {
        const auto run = [&]<int N>() {
            with_kept_packs(s.width, N, [&]<int I>() {
                launch(gate_residual_norm_modulate_kernel<N, I, In, Out>, {rows}, row_threads(s.width, N), 0, s, x, gate, branch, y, scale, normed,
                       mean, inverse_std);
            });
        };
        if (in_fours({s.width, s.mod_stride}, {x, gate, branch, y, scale, normed})) run.template operator()<4>();
        else run.template operator()<1>();
    });
}

// Floor: 3 * 4 n bytes, 10 n to bf16, 8 n of bf16 to bf16.
void gate_residual_backward(const ModulationShape& s, const float* gate, Operand added, const float* dy, OperandOut to, float* dgate) {
    const Chunks chunks(s.groups, s.rows);
    float* partial = scratch_floats(s.groups * chunks.count * s.width);
    const Grid grid{chunks.count, s.groups};
    with_addresses(added, to, [&]<typename In, typename Out>(const In* branch, Out* dbranch) {
        if (in_fours({s.width, s.mod_stride}, {gate, branch, dy, dbranch}))
            launch(gate_residual_backward_kernel<4, In, Out>, grid, row_threads(s.width, 4), 0, s, chunks.rows, gate, branch, dy, dbranch, partial);
        else
            launch(gate_residual_backward_kernel<1, In, Out>, grid, row_threads(s.width, 1), 0, s, chunks.rows, gate, branch, dy, dbranch, partial);
    });
    finish_columns(s.groups, chunks.count, s.width, s.mod_stride, partial, dgate);
}

}  // namespace atelier::ops::cuda
