#pragma once

#include <cstddef>

#include "core/tensor.hpp"

namespace atelier {

/// The right to work on the process's device. A backend serves one thread at a time: one stream, one set of scratch memory, recordings of
/// whatever is queued. Threads that share the device (a judge beside the sampling) hold a turn around what they queue and what they take or
/// give back of its memory, and hold none while they wait for each other or work on the host. Turns come in the order in which they are
/// asked for, whatever the threads do in them; who waits sleeps. A turn within a thread's turn is part of it; on the CPU a turn is nothing.
class DeviceTurn {
  public:
    explicit DeviceTurn(Device device);
    ~DeviceTurn();
    DeviceTurn(const DeviceTurn&) = delete;
    DeviceTurn& operator=(const DeviceTurn&) = delete;

    /// Whether the calling thread has one.
    static bool is_mine();
    /// Threads that wait for theirs.
    static std::size_t waiting();

  private:
    bool counts_;
};

/// For its life several threads use the device: who takes memory or copies there without a turn is told by Error(internal).
class SharedDevice {
  public:
    SharedDevice();
    ~SharedDevice();
    SharedDevice(const SharedDevice&) = delete;
    SharedDevice& operator=(const SharedDevice&) = delete;
};

/// Throws Error(internal) where the device is shared and the calling thread has no turn.
void check_device_turn();

}  // namespace atelier
