#pragma once

#include "core/device.hpp"
#include "model/dit/dit.hpp"

// What goes in and out of passes may lie elsewhere than they run (core/device.hpp).
namespace atelier::dit {

inline Tensor there(const Dit& dit, const Tensor& tensor, const Tensor& room) { return atelier::there(dit.device(), tensor, room); }
inline Tensor bring(const Dit& dit, const Tensor& tensor, const Tensor& room) { return atelier::bring(dit.device(), tensor, room); }

/// Room for a tensor that may come from elsewhere; none is needed where passes run on the CPU.
inline Tensor plan_room(const Dit& dit, Shape shape, Arena& arena) {
    return dit.device() == Device::cpu ? Tensor() : arena.take_f32(shape, dit.device());
}

}  // namespace atelier::dit
