#include "core/device.hpp"

#include <cstring>

#include "core/device_turn.hpp"

namespace atelier {
namespace {

DeviceMemory* loaded = nullptr;

}  // namespace

DeviceMemory& device_memory() {
    ATELIER_CHECK_USAGE(loaded != nullptr, "device memory was asked for and no CUDA backend is loaded (device = \"cuda\")");
    return *loaded;
}

void set_device_memory(DeviceMemory* memory) { loaded = memory; }

void transfer(const Tensor& from, const Tensor& to) {
    ATELIER_CHECK(from.dtype() == to.dtype() && from.elements() == to.elements(), "{} of {} cannot be copied to {} of {}",
                  from.shape().str(), name_of(from.dtype()), to.shape().str(), name_of(to.dtype()));
    if (from.elements() == 0 || from.raw() == to.raw()) return;
    if (from.device() == Device::cpu && to.device() == Device::cpu) {
        std::memcpy(to.raw(), from.raw(), from.bytes());
        return;
    }
    check_device_turn();
    if (from.device() == Device::cpu)
        device_memory().to_device(to.raw(), from.raw(), from.bytes());
    else if (to.device() == Device::cpu)
        device_memory().to_host(to.raw(), from.raw(), from.bytes());
    else
        device_memory().within(to.raw(), from.raw(), from.bytes());
}

void clear(const Tensor& tensor) {
    if (tensor.elements() == 0) return;
    if (tensor.device() == Device::cpu) {
        std::memset(tensor.raw(), 0, tensor.bytes());
        return;
    }
    check_device_turn();
    device_memory().zero(tensor.raw(), tensor.bytes());
}

Tensor there(Device device, const Tensor& tensor, const Tensor& room) {
    if (tensor.empty() || tensor.device() == device) return tensor;
    ATELIER_CHECK(tensor.elements() <= room.elements() && tensor.dtype() == room.dtype(), "{} numbers of {} where room for {} of {} was planned",
                  tensor.elements(), name_of(tensor.dtype()), room.elements(), name_of(room.dtype()));
    return Tensor(room.raw(), tensor.dtype(), tensor.shape(), room.device());
}

Tensor bring(Device device, const Tensor& tensor, const Tensor& room) {
    const Tensor at = there(device, tensor, room);
    if (at.raw() != tensor.raw()) transfer(tensor, at);
    return at;
}

}  // namespace atelier
