#include "comm/nccl/ordered_sum.hpp"

namespace atelier::comm {
namespace {

constexpr int threads = 256;

/// Floor: 4 (parts + 1) share bytes.
__global__ void ordered_sum_kernel(int parts_count, std::int64_t share, const float* parts, float* out) {
    const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= share) return;
    float sum = parts[i];
    for (int r = 1; r < parts_count; ++r) sum += parts[r * share + i];
    out[i] = sum;
}

}  // namespace

cudaError_t ordered_sum(int parts_count, std::int64_t share, const float* parts, float* out, cudaStream_t stream) {
    if (share == 0) return cudaSuccess;
    const cudaLaunchConfig_t config{dim3(static_cast<unsigned>((share + threads - 1) / threads)), dim3(threads), 0, stream, nullptr, 0};
    return cudaLaunchKernelEx(&config, ordered_sum_kernel, parts_count, share, parts, out);
}

}  // namespace atelier::comm
