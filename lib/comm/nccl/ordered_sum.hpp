#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace atelier::comm {

/// out[i] = parts[0 * share + i] + parts[1 * share + i] + …, in this order. Gives the launch's status.
cudaError_t ordered_sum(int parts_count, std::int64_t share, const float* parts, float* out, cudaStream_t stream);

}  // namespace atelier::comm
