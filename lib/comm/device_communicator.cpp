#include "comm/device_communicator.hpp"

#include "core/library.hpp"

namespace atelier::comm {

std::unique_ptr<DeviceCommunicator> make_device_communicator(Communicator& world, void* compute_stream) {
    const auto entry = reinterpret_cast<DeviceCommunicatorEntry>(
        load_entry("a communicator between devices", "ATELIER_NCCL_BACKEND", "libatelier_nccl.so", "atelier_device_communicator"));
    return std::unique_ptr<DeviceCommunicator>(entry(process(), world, compute_stream));
}

}  // namespace atelier::comm
