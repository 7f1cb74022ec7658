#pragma once

#include <cstddef>
#include <cstdint>

#ifndef ATELIER_EMULATED
#include <cuda_runtime.h>
#endif

// What operations of one process share on the device: its stream and its scratch memory.
namespace atelier::ops::cuda {

#ifndef ATELIER_EMULATED
/// Throws Error(internal), or Error(io) where the device has no memory left, naming `what`.
void check(cudaError_t status, const char* what);
/// Everything is queued on this one stream, in the order of the calls.
cudaStream_t stream();
#endif

/// The same as an address, for collectives.
void* compute_stream();

/// Device memory for the duration of one operation; what an earlier call got is void. 256-byte aligned. It grows to the largest
/// request (outside of stream capture only) and stays: after the first step nothing is allocated.
void* scratch(std::size_t bytes);
/// The same for what a library asks for within an operation that has its own.
void* library_scratch(std::size_t bytes);
/// Where scratch memory is at present: an address that an operation got holds as long as these are the same.
struct ScratchAddresses {
    const void *own = nullptr, *library = nullptr;
    bool operator==(const ScratchAddresses&) const = default;
};
ScratchAddresses scratch_addresses();
inline float* scratch_floats(std::int64_t count) { return static_cast<float*>(scratch(static_cast<std::size_t>(count) * sizeof(float))); }
inline double* scratch_doubles(std::int64_t count) { return static_cast<double*>(scratch(static_cast<std::size_t>(count) * sizeof(double))); }

}  // namespace atelier::ops::cuda
