#pragma once

#include <memory>

#include "comm/communicator.hpp"

namespace atelier::comm {

/// The same ranks for a computation on a device: sums and shares of fp32 numbers, and gathers, take spans of the device's memory and run on
/// its stream of their own (device_communicator.hpp), in order with the computation; everything else goes through `world`, which must
/// outlive this one. A gather or a sum of shares that is begun overlaps with what is computed until it is finished. `compute_stream`: the computation's.
/// Throws Error(usage) where there are several ranks and no library that connects devices.
std::unique_ptr<Communicator> make_on_device(Communicator& world, void* compute_stream);

}  // namespace atelier::comm
