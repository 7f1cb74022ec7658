#pragma once

#include "ops/cuda/kernel.hpp"

namespace atelier::ops::cuda {

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

}  // namespace atelier::ops::cuda
