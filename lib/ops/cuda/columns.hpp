#pragma once

#include "ops/cuda/kernel.hpp"

// Sums over rows, deterministic without atomics: a block takes a chunk of consecutive rows of one group and leaves one row of
// partial sums; then each column's partial sums are added in chunk order.
namespace atelier::ops::cuda {

// Shared memory of a block, 48 KiB, holds one row of sums beside what block_sum takes.
constexpr std::int64_t max_row = 12288 - 2 * warp_size;
// Blocks that a chunked kernel aims at: four on each of 132 multiprocessors. Fixed, so that sums don't depend on the device.
constexpr std::int64_t target_blocks = 528;

/// How the rows of groups are cut; a function of the shape alone.
struct Chunks {
    std::int64_t rows = 1;   ///< of a chunk
    std::int64_t count = 0;  ///< chunks of a group
    Chunks(std::int64_t groups, std::int64_t group_rows)
        : rows(ceil_div(groups * group_rows, target_blocks)), count(0) {
        if (rows < 1) rows = 1;
        count = ceil_div(group_rows, rows);
    }
};

constexpr int column_slots = 8;

/// out[g, j] += sum over chunks of partial[g, chunk, j] (`stride` from one chunk's row to the next): slots of chunks c, c + 8, … in
/// order, then the slots in order.
static __global__ void add_columns_of_chunks(std::int64_t chunks, std::int64_t width, std::int64_t stride, std::int64_t out_stride,
                                             const float* partial, float* out) {
    ATELIER_SHARED(float, sums, column_slots* warp_size);
    const std::int64_t group = blockIdx.y;
    const int lane = threadIdx.x % warp_size, slot = threadIdx.x / warp_size;
    const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * warp_size + lane;
    float sum = 0;
    if (column < width)
        for (std::int64_t c = slot; c < chunks; c += column_slots) sum += partial[(group * chunks + c) * stride + column];
    sums[slot * warp_size + lane] = sum;
    __syncthreads();
    if (slot != 0 || column >= width) return;
    for (int s = 1; s < column_slots; ++s) sum += sums[s * warp_size + lane];
    out[group * out_stride + column] += sum;
}

inline void finish_columns(std::int64_t groups, std::int64_t chunks, std::int64_t width, std::int64_t out_stride, const float* partial,
                           float* out) {
    launch(add_columns_of_chunks, {ceil_div(width, warp_size), groups}, column_slots * warp_size, 0, chunks, width, width, out_stride,
           partial, out);
}

/// The same for one group whose chunks' rows are `stride` numbers apart.
inline void finish_part_columns(std::int64_t chunks, std::int64_t width, std::int64_t stride, const float* partial, float* out) {
    launch(add_columns_of_chunks, {ceil_div(width, warp_size)}, column_slots * warp_size, 0, chunks, width, stride, std::int64_t{0}, partial,
           out);
}

}  // namespace atelier::ops::cuda
