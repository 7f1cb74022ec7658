#pragma once

#include "core/device.hpp"
#include "model/dit/dit.hpp"

// What goes in and out of passes may lie elsewhere than they run (core/device.hpp).
namespace atelier::dit {

/// The calling thread's operations run as the transformer says.
struct PassScope {
    explicit PassScope(const Dit& dit) : device(dit.device()), precision(dit.precision()) {}
    DeviceScope device;
    ops::PrecisionScope precision;
};

inline Tensor there(const Dit& dit, const Tensor& tensor, const Tensor& room) { return atelier::there(dit.device(), tensor, room); }
inline Tensor bring(const Dit& dit, const Tensor& tensor, const Tensor& room) { return atelier::bring(dit.device(), tensor, room); }

/// An input that products take, and round where it lies: a copy of the caller's numbers where they do.
inline Tensor bring_operand(const Dit& dit, const Tensor& tensor, const Tensor& room) {
    if (!dit.rounds_operands()) return bring(dit, tensor, room);
    ATELIER_CHECK(tensor.elements() <= room.elements(), "{} numbers for a pass that planned {}", tensor.elements(), room.elements());
    const Tensor at(room.raw(), tensor.dtype(), tensor.shape(), room.device());
    transfer(tensor, at);
    return at;
}

/// Room for a tensor that may come from elsewhere; none is needed where passes run on the CPU.
inline Tensor plan_room(const Dit& dit, Shape shape, Arena& arena) {
    return dit.device() == Device::cpu ? Tensor() : arena.take_f32(shape, dit.device());
}
/// The same for what bring_operand() brings.
inline Tensor plan_operand(const Dit& dit, Shape shape, Arena& arena) {
    return dit.rounds_operands() ? arena.take_f32(shape) : plan_room(dit, shape, arena);
}

}  // namespace atelier::dit
