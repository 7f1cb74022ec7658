#pragma once

#include <type_traits>

#include "flow/sampler.hpp"
#include "ops/backend.hpp"

namespace atelier::flow {

/// Whether an operation on T runs on a device: spans of fp32 numbers are its memory then.
template <typename T>
bool runs_on_device() {
    return std::is_same_v<T, float> && current_device() == Device::cuda;
}

/// A transition's factors in the precision of latents.
inline ops::Transition in_fp32(const Transition& t) {
    return {static_cast<float>(t.on_x), static_cast<float>(t.on_v), static_cast<float>(t.std)};
}

}  // namespace atelier::flow
