#pragma once

#include "core/device.hpp"
#include "core/error.hpp"

namespace atelier::ops {

/// An operation that runs where the calling thread's operations run (core/device.hpp): on the CPU, or by the function of the same
/// signature that the loaded backend brought.
template <auto cpu_function>
struct Op;

template <typename R, typename... A, R (*cpu_function)(A...)>
struct Op<cpu_function> {
    using Function = R (*)(A...);
    inline static Function on_cuda = nullptr;  ///< by ops/backend.cpp
    static R call(A... arguments) {
        if (current_device() == Device::cpu) [[likely]]
            return cpu_function(arguments...);
        ATELIER_CHECK(on_cuda != nullptr, "an operation was asked of a device and no backend is loaded");
        return on_cuda(arguments...);
    }
    R operator()(A... arguments) const { return call(arguments...); }
    constexpr operator Function() const { return &call; }
};

}  // namespace atelier::ops

/// ops::name for cpu::name, declared before.
#define ATELIER_OP(name) inline constexpr Op<&cpu::name> name{}
