#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "comm/communicator.hpp"
#include "core/process.hpp"

namespace atelier::comm {

/// Collectives of the same ranks on device memory. They are queued on a stream of their own, in the order of the calls, and run beside
/// the computation; `after_compute` and `before_compute` order the two. Every rank makes the same calls in the same order.
///
/// Sums are made in rank order, as Communicator's. A call that meets a rank that failed throws Error(rank); the transport is
/// aborted first, so that nobody waits for this one.
class DeviceCommunicator {
  public:
    virtual ~DeviceCommunicator() = default;
    /// values[i] = sum over ranks 0, 1, … of values[i], on every rank; n numbers.
    virtual void sum(float* values, std::int64_t n) = 0;
    /// mine[i] = sum over ranks 0, 1, … of values[rank * share + i]; values [size * share].
    virtual void reduce_scatter(const float* values, float* mine, std::int64_t share) = 0;
    /// all[r * bytes …] = rank r's bytes. `mine` may be its place in `all`.
    virtual void all_gather(const void* mine, void* all, std::size_t bytes) = 0;
    /// Collectives from here on see what was computed before.
    virtual void after_compute() = 0;
    /// Computation from here on sees the collectives so far.
    virtual void before_compute() = 0;
    /// Waits for the collectives so far, watching for ranks that failed.
    virtual void wait() = 0;
    /// Bytes of device memory that it holds.
    virtual std::size_t bytes() const = 0;
};

/// Bytes of device memory that its sums take, whatever the number of ranks.
inline constexpr std::size_t device_sum_bytes = std::size_t{1} << 26;

/// `compute_stream`: the computation's stream of this process's device (a cudaStream_t). One rank a device. `world` carries the
/// bootstrap. Loads ATELIER_NCCL_BACKEND if set, else ../lib/libatelier_nccl.so beside the program; throws Error(usage) where it is
/// missing.
std::unique_ptr<DeviceCommunicator> make_device_communicator(Communicator& world, void* compute_stream);

/// What the library exports as `atelier_device_communicator`.
using DeviceCommunicatorEntry = DeviceCommunicator* (*)(const Process& process, Communicator& world, void* compute_stream);

}  // namespace atelier::comm
