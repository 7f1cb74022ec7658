#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "comm/communicator.hpp"
#include "core/process.hpp"

namespace atelier::comm {

/// Collectives of the same ranks on device memory. They are queued on a stream of their own, in the order of the calls, and run beside
/// the computation; `after_compute`, `sum_before_compute` and `gather_before_compute` order the two. Every rank makes the same calls in the same order.
///
/// Sums are made in rank order, as Communicator's.
///
/// A call that meets a rank or a link that failed aborts the transport, so that nobody waits for this one, and throws Error(rank). Where
/// the failure comes after the call, what is queued never ends, nor does the host's wait for the device: a thread of its own asks the
/// transport ten times a second, and does with an error what main does (run_main.hpp): says it and ends all ranks, code 8. A death of
/// which the transport hears nothing (NCCL watches its network connections) is the launcher's, which ends the other ranks.
///
/// The constructor waits for the other ranks as long as launcher_patience (patience.hpp) says, then throws Error(rank); the destructor
/// waits for what is queued and for the other ranks' destructors, as long at most. While an exception is on its way it waits for nothing
/// and releases nothing: the process is about to end.
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
    /// Computation from here on sees the last sum (of either kind), or the last gather, and what was queued before it; what was queued after it
    /// may go on beside the computation.
    virtual void sum_before_compute() = 0;
    virtual void gather_before_compute() = 0;
    /// Bytes of device memory that it holds.
    virtual std::size_t bytes() const = 0;
};

/// Bytes of device memory that its sums take, whatever the number of ranks.
inline constexpr std::size_t device_sum_bytes = std::size_t{1} << 26;
/// Bytes that NCCL's channels, its connections and its code are taken to hold on a device of several; never measured.
inline constexpr std::size_t device_channel_bytes = std::size_t{512} << 20;

/// `compute_stream`: the computation's stream of this process's device (a cudaStream_t). One rank a device. `world` carries the
/// bootstrap, and must outlive it. Loads ATELIER_NCCL_BACKEND if set, else ../lib/libatelier_nccl.so beside the program; throws Error(usage) where it is
/// missing.
std::unique_ptr<DeviceCommunicator> make_device_communicator(Communicator& world, void* compute_stream);

/// What the library exports as `atelier_device_communicator`.
using DeviceCommunicatorEntry = DeviceCommunicator* (*)(const Process& process, Communicator& world, void* compute_stream);

}  // namespace atelier::comm
