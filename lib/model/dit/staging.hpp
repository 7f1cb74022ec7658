#pragma once

#include "core/device.hpp"
#include "model/dit/dit.hpp"

// What goes in and out of passes may lie elsewhere than they run.
namespace atelier::dit {

/// The tensor itself where it is on the passes' device, else the head of `room`.
inline Tensor there(const Dit& dit, const Tensor& tensor, const Tensor& room) {
    if (tensor.empty() || tensor.device() == dit.device()) return tensor;
    ATELIER_CHECK(tensor.elements() <= room.elements(), "{} numbers for a pass that planned {}", tensor.elements(), room.elements());
    return Tensor(room.raw(), tensor.dtype(), tensor.shape(), room.device());
}

/// An input, brought there.
inline Tensor bring(const Dit& dit, const Tensor& tensor, const Tensor& room) {
    const Tensor at = there(dit, tensor, room);
    if (at.raw() != tensor.raw()) transfer(tensor, at);
    return at;
}

/// Room for a tensor that may come from elsewhere; none is needed where passes run on the CPU.
inline Tensor plan_room(const Dit& dit, Shape shape, Arena& arena) {
    return dit.device() == Device::cpu ? Tensor() : arena.take_f32(shape, dit.device());
}

}  // namespace atelier::dit
