#pragma once

#include "core/device.hpp"

namespace atelier::ops::cuda {

/// This process's device memory (one per process: the device that it uses).
DeviceMemory& memory();
inline void copy_to_device(void* device, const void* host, std::size_t bytes) { memory().to_device(device, host, bytes); }

}  // namespace atelier::ops::cuda
