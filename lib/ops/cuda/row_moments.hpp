#pragma once

#include "ops/cuda/kernel.hpp"

namespace atelier::ops::cuda {

struct RowMoments {
    float mean, inverse_std;
};

/// Mean and 1 / sqrt(variance + eps) of a row of `width` numbers, on every thread of the block that reads it. The second pass finds the row in
/// the first-level cache.
template <int N>
__device__ __forceinline__ RowMoments row_moments(const float* in, std::int64_t width, float eps) {
    const float count = static_cast<float>(width);
    float sum[1] = {0};
    for (std::int64_t j = threadIdx.x * N; j < width; j += blockDim.x * N) {
        const Pack<N> p = load<N>(in + j);
        for (int k = 0; k < N; ++k) sum[0] += p.v[k];
    }
    block_sum(sum);
    const float mean = sum[0] / count;
    float square[1] = {0};
    for (std::int64_t j = threadIdx.x * N; j < width; j += blockDim.x * N) {
        const Pack<N> p = load<N>(in + j);
        for (int k = 0; k < N; ++k) square[0] += (p.v[k] - mean) * (p.v[k] - mean);
    }
    block_sum(square);
    return {mean, 1.0f / sqrtf(square[0] / count + eps)};
}

}  // namespace atelier::ops::cuda
