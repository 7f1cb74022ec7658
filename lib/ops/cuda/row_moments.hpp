#pragma once

#include "ops/cuda/kernel.hpp"

namespace atelier::ops::cuda {

struct RowMoments {
    float mean, inverse_std;
};

/// A row of `width` numbers as a block reads it, packs of N, thread by thread: kept in I packs a thread, which the row must fit into, or, at
/// I = 0, read again for each pass (from the first-level cache).
template <int N, int I>
class Row {
  public:
    __device__ __forceinline__ Row(const float* in, std::int64_t width) : in_(in), width_(width) {
        for (int n = 0; n < I; ++n)
            if (const std::int64_t j = at(n); j < width) kept_[n] = load<N>(in + j);
    }
    /// What f(number of the first, pack) makes of a row, written to `out`.
    template <typename Function>
    __device__ __forceinline__ Row(const float* in, std::int64_t width, float* out, Function f) : in_(out), width_(width) {
        if constexpr (I > 0) {
            for (int n = 0; n < I; ++n)
                if (const std::int64_t j = at(n); j < width) store(out + j, kept_[n] = f(j, load<N>(in + j)));
        } else {
            // Read again by the thread that writes them.
            for (std::int64_t j = threadIdx.x * N; j < width; j += blockDim.x * N) store(out + j, f(j, load<N>(in + j)));
        }
    }
    /// f(number of the first, pack) for the thread's packs.
    template <typename Function>
    __device__ __forceinline__ void each(Function f) const {
        if constexpr (I > 0) {
            for (int n = 0; n < I; ++n)
                if (const std::int64_t j = at(n); j < width_) f(j, kept_[n]);
        } else {
            for (std::int64_t j = threadIdx.x * N; j < width_; j += blockDim.x * N) f(j, load<N>(in_ + j));
        }
    }
    /// Mean and 1 / sqrt(variance + eps), on every thread of the block.
    __device__ __forceinline__ RowMoments moments(float eps) const {
        const float count = static_cast<float>(width_);
        float sum[1] = {0};
        each([&](std::int64_t, const Pack<N>& p) {
            for (int k = 0; k < N; ++k) sum[0] += p.v[k];
        });
        block_sum(sum);
        const float mean = sum[0] / count;
        float square[1] = {0};
        each([&](std::int64_t, const Pack<N>& p) {
            for (int k = 0; k < N; ++k) square[0] += (p.v[k] - mean) * (p.v[k] - mean);
        });
        block_sum(square);
        return {mean, 1.0f / sqrtf(square[0] / count + eps)};
    }

  private:
    __device__ __forceinline__ std::int64_t at(int n) const { return (static_cast<std::int64_t>(n) * blockDim.x + threadIdx.x) * N; }
    const float* in_;
    std::int64_t width_;
    Pack<N> kept_[I > 0 ? I : 1];
};

/// f.template operator()<I>() for blocks of row_threads(width, n).
template <typename Function>
void with_kept_packs(std::int64_t width, int n, Function f) {
    const std::int64_t packs = ceil_div(width, static_cast<std::int64_t>(n) * row_threads(width, n));
    if (packs <= 1) f.template operator()<1>();
    else if (packs <= 4) f.template operator()<4>();
    else f.template operator()<0>();
}

}  // namespace atelier::ops::cuda
