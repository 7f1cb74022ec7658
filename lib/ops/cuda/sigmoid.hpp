#pragma once

#include "ops/cuda/kernel.hpp"

namespace atelier::ops::cuda {

/// 1 / y, rounded as a division is, of y in [1, 2^126]: the hardware's estimate and one step of Newton's, which is what a division does there too
/// once it has looked for numbers that need more.
__device__ __forceinline__ float reciprocal(float y) {
#ifdef __CUDA_ARCH__
    float estimate;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(estimate) : "f"(y));
    return fmaf(estimate, fmaf(-y, estimate, 1.0f), estimate);
#else
    return 1.0f / y;
#endif
}

/// Not below 2^-126, where x < -87; NaN of NaN.
__device__ __forceinline__ float sigmoid(float x) {
    const float y = 1.0f + expf(-x);
    return reciprocal(y > 0x1p126f ? 0x1p126f : y);
}

}  // namespace atelier::ops::cuda
