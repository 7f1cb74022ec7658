#pragma once

#include "ops/cuda/kernel.hpp"

// bf16 as its 16 bits, as everywhere in Atelier (core/convert.hpp).
namespace atelier::ops::cuda {

/// Round to nearest even; NaN stays NaN.
__device__ __forceinline__ std::uint16_t bf16_bits(float value) {
    const unsigned bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
    return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
__device__ __forceinline__ float bf16_value(std::uint16_t bits) { return __uint_as_float(static_cast<unsigned>(bits) << 16); }

}  // namespace atelier::ops::cuda
