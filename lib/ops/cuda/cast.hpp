#pragma once

#ifndef ATELIER_EMULATED
#include <cuda_bf16.h>
#endif

#include <type_traits>

#include "ops/cuda/kernel.hpp"
#include "ops/operand.hpp"

// bf16 as its 16 bits, as everywhere in Atelier (core/convert.hpp).
namespace atelier::ops::cuda {

/// Round to nearest even; NaN stays NaN: a device's conversion makes 0x7fff of any, the host's form keeps its sign and first digits. All other
/// numbers, subnormal ones and those beyond the largest too, have the same bits either way.
__device__ __forceinline__ std::uint16_t bf16_bits(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    return __bfloat16_as_ushort(__float2bfloat16_rn(value));
#else
    const unsigned bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
    return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
}
__device__ __forceinline__ float bf16_value(std::uint16_t bits) { return __uint_as_float(static_cast<unsigned>(bits) << 16); }

/// Two neighbours in memory as one word: a conversion takes both, and each widens by one instruction.
__device__ __forceinline__ unsigned bf16_pair(float first, float second) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    return *reinterpret_cast<const unsigned*>(&pair);
#else
    return static_cast<unsigned>(bf16_bits(first)) | static_cast<unsigned>(bf16_bits(second)) << 16;
#endif
}
__device__ __forceinline__ float first_value(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float second_value(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }

/// N bf16 numbers as they lie in memory.
template <int N>
struct alignas(2 * N) HalfPack {
    static_assert(N % 2 == 0);
    unsigned pair[N / 2];
    __device__ __forceinline__ Pack<N> widened() const {
        Pack<N> pack;
        for (int k = 0; k < N / 2; ++k) pack.v[2 * k] = first_value(pair[k]), pack.v[2 * k + 1] = second_value(pair[k]);
        return pack;
    }
};
template <>
struct HalfPack<1> {
    std::uint16_t one;
    __device__ __forceinline__ Pack<1> widened() const { return {bf16_value(one)}; }
};

template <int N>
__device__ __forceinline__ HalfPack<N> rounded(const Pack<N>& pack) {
    HalfPack<N> bits;
    if constexpr (N == 1) bits.one = bf16_bits(pack.v[0]);
    else
        for (int k = 0; k < N / 2; ++k) bits.pair[k] = bf16_pair(pack.v[2 * k], pack.v[2 * k + 1]);
    return bits;
}

/// N numbers as they lie in memory: what is on its way takes no more registers than that.
template <int N, typename T>
using Stored = std::conditional_t<std::is_same_v<T, float>, Pack<N>, HalfPack<N>>;
template <int N, typename T>
__device__ __forceinline__ Stored<N, T> load_stored(const T* p) {
    return *reinterpret_cast<const Stored<N, T>*>(p);
}
template <int N>
__device__ __forceinline__ Pack<N> widened(const Pack<N>& stored) {
    return stored;
}
template <int N>
__device__ __forceinline__ Pack<N> widened(const HalfPack<N>& stored) {
    return stored.widened();
}

/// N bf16 numbers at once, as fp32.
template <int N>
__device__ __forceinline__ Pack<N> load(const std::uint16_t* p) {
    return load_stored<N>(p).widened();
}
template <int N>
__device__ __forceinline__ void store(std::uint16_t* p, const Pack<N>& pack) {
    *reinterpret_cast<HalfPack<N>*>(p) = rounded(pack);
}

/// f(address) with the type of the numbers of an Operand, or of an OperandOut, to be written.
template <typename Numbers, typename Function>
void with_address(Numbers operand, Function f) {
    if (operand.is_bf16()) f(operand.bf16());
    else f(operand.f32());
}

/// The address of numbers whose type is known. Throws Error(internal) where it is another.
template <typename T, typename Numbers>
auto address_of(Numbers operand) {
    if constexpr (std::is_same_v<T, std::uint16_t>) return operand.bf16();
    else return operand.f32();
}

/// f(where it is read, where it is written) with both types.
template <typename Function>
void with_addresses(Operand from, OperandOut to, Function f) {
    with_address(from, [&](const auto* in) { with_address(to, [&](auto* out) { f(in, out); }); });
}

/// IEEE half: round to nearest even, overflow to infinity (core/convert.hpp).
__device__ __forceinline__ std::uint16_t f16_bits(float value) {
    const unsigned bits = __float_as_uint(value), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);
    if (magnitude < 0x38800000u)  // subnormal half: add a constant whose last bit is 2^-24
        return static_cast<std::uint16_t>(sign | (__float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000u));
    return static_cast<std::uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13));
}
__device__ __forceinline__ float f16_value(std::uint16_t bits) {
    const unsigned sign = static_cast<unsigned>(bits & 0x8000u) << 16, exponent = (bits >> 10) & 31u, mantissa = bits & 0x3ffu;
    if (exponent == 31u) return __uint_as_float(sign | 0x7f800000u | (mantissa << 13));
    if (exponent != 0u) return __uint_as_float(sign | ((exponent + 112u) << 23) | (mantissa << 13));
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0u ? -magnitude : magnitude;
}

}  // namespace atelier::ops::cuda
