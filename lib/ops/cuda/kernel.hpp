#pragma once

// What every kernel file includes. The same source is compiled by nvcc for the device and, in tests/emulator, by the host's
// compiler against an emulator of one block at a time.
#ifdef ATELIER_EMULATED
#include "emulator/block_emulator.hpp"
#else
#include <cuda_runtime.h>
#define ATELIER_SHARED(type, name, count) __shared__ type name[count]
#define ATELIER_DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif

#include <cmath>
#include <cstdint>
#include <initializer_list>

#include "core/error.hpp"
#include "ops/cuda/context.hpp"

namespace atelier::ops::cuda {

constexpr int warp_size = 32;
constexpr int max_block = 256;  ///< threads of a block of row kernels
constexpr unsigned all_lanes = 0xffffffffu;

/// Blocks of a launch.
struct Grid {
    std::int64_t x = 1, y = 1, z = 1;
};

#ifdef ATELIER_EMULATED
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), Grid grid, int threads, std::size_t shared_bytes, Arguments... arguments) {
    if (grid.x * grid.y * grid.z == 0) return;
    (emulator::check_argument(arguments), ...);
    emulator::run(grid.x, grid.y, grid.z, threads, shared_bytes, [=] { kernel(arguments...); });
}
#else
/// Queues kernel<<<grid, threads, shared_bytes>>>(arguments...) on the thread's stream. An empty grid is no launch.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), Grid grid, int threads, std::size_t shared_bytes, Arguments... arguments) {
    if (grid.x * grid.y * grid.z == 0) return;
    ATELIER_CHECK(grid.x <= 0x7fffffff && grid.y <= 65535 && grid.z <= 65535, "a grid of {} x {} x {} blocks", grid.x, grid.y,
                  grid.z);
    const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z));
    const cudaLaunchConfig_t config{blocks, dim3(static_cast<unsigned>(threads)), shared_bytes, stream(), nullptr, 0};
    check(cudaLaunchKernelEx(&config, kernel, arguments...), "a kernel's launch");  // cudaGetLastError may tell of an earlier call
}
#endif

/// N numbers that are loaded and stored at once.
template <int N>
struct alignas(4 * N) Pack {
    float v[N];
};

template <int N>
__device__ __forceinline__ Pack<N> load(const float* p) {
    return *reinterpret_cast<const Pack<N>*>(p);
}
template <int N>
__device__ __forceinline__ void store(float* p, const Pack<N>& pack) {
    *reinterpret_cast<Pack<N>*>(p) = pack;
}

/// True if rows of these widths or strides at these addresses can be read four numbers at a time.
inline bool in_fours(std::initializer_list<std::int64_t> sizes, std::initializer_list<const void*> pointers) {
    for (const std::int64_t size : sizes)
        if (size % 4 != 0) return false;
    for (const void* pointer : pointers)
        if (reinterpret_cast<std::uintptr_t>(pointer) % 16 != 0) return false;
    return true;
}

/// Threads for a row of `width` numbers read `n` at a time: whole warps, at most max_block.
inline int row_threads(std::int64_t width, int n) {
    const std::int64_t warps = (width + n * warp_size - 1) / (n * warp_size);
    return static_cast<int>(warps < max_block / warp_size ? (warps > 0 ? warps : 1) * warp_size : max_block);
}

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// Sum over the lanes of a warp, the same bits in each: a butterfly of commutative additions.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
    for (int distance = warp_size / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(all_lanes, value, distance);
    return value;
}
__device__ __forceinline__ float warp_max(float value) {
    for (int distance = warp_size / 2; distance > 0; distance /= 2)
        value = fmaxf(value, __shfl_xor_sync(all_lanes, value, distance));
    return value;
}

/// Sums K values over the block's threads, the same bits in each: lanes by butterfly, then warps in order. Every thread of the
/// block calls it; blocks are of whole warps, at most max_block threads.
template <typename T, int K>
__device__ __forceinline__ void block_sum(T (&values)[K]) {
    constexpr int most_warps = max_block / warp_size;
    ATELIER_SHARED(T, partial, most_warps * K);
    const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size, warps = blockDim.x / warp_size;
    for (int k = 0; k < K; ++k) values[k] = warp_sum(values[k]);
    if (warps == 1) return;
    if (lane == 0)
        for (int k = 0; k < K; ++k) partial[warp * K + k] = values[k];
    __syncthreads();
    for (int k = 0; k < K; ++k) {
        values[k] = partial[k];
        for (int w = 1; w < most_warps; ++w)  // a fixed bound: all are read before the first is added
            if (w < warps) values[k] += partial[w * K + k];
    }
    __syncthreads();  // the next sum writes the same memory
}

}  // namespace atelier::ops::cuda
