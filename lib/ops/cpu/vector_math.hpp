#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

// Branch-free single-precision functions that the compiler vectorises. Every element goes through the same
// operations wherever it lies in a vector, so results don't depend on position or length.
namespace atelier::ops::cpu {

/// exp(x), at most 2 units in the last place off for x in [-87, 88]; 0 below, saturates above.
inline float exp_f32(float x) {
    constexpr float low = -87.0f, high = 88.0f;  // 2^n is a normal number
    const float clamped = x < low ? low : (x > high ? high : x);
    constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const float shifted = std::fma(clamped, 1.44269504088896341f, magic);
    const float n = shifted - magic;
    float r = std::fma(n, -0.693359375f, clamped);
    r = std::fma(n, 2.12194440e-4f, r);
    float p = 1.9875691500e-4f;  // Cephes expf
    p = std::fma(p, r, 1.3981999507e-3f);
    p = std::fma(p, r, 8.3334519073e-3f);
    p = std::fma(p, r, 4.1665795894e-2f);
    p = std::fma(p, r, 1.6666665459e-1f);
    p = std::fma(p, r, 5.0000001201e-1f);
    p = std::fma(p, r * r, r + 1.0f);
    const std::int32_t exponent = std::bit_cast<std::int32_t>(shifted) - std::bit_cast<std::int32_t>(magic);
    const float y = p * std::bit_cast<float>((exponent + 127) << 23);
    return x < low ? 0.0f : y;
}

inline float sigmoid_f32(float x) { return 1.0f / (1.0f + exp_f32(-x)); }
inline float silu_f32(float x) { return x * sigmoid_f32(x); }
inline float silu_slope_f32(float x) {
    const float s = sigmoid_f32(x);
    return s * (1.0f + x * (1.0f - s));
}
inline float tanh_f32(float x) { return 1.0f - 2.0f / (exp_f32(2.0f * x) + 1.0f); }

/// Numbers per partial sum: a fixed tree, so that a row's sum has the same bits everywhere.
inline constexpr int lanes = 16;

/// The sum of partial sums: halves onto halves. In registers, which the compiler does not do with loops.
inline float sum_of_lanes(const float (&partial)[lanes]) {
    using Eight [[gnu::vector_size(32)]] = float;
    using Four [[gnu::vector_size(16)]] = float;
    Eight low, high;
    std::memcpy(&low, partial, sizeof low);
    std::memcpy(&high, partial + lanes / 2, sizeof high);
    low += high;
    Four left, right;
    std::memcpy(&left, &low, sizeof left);
    std::memcpy(&right, reinterpret_cast<const char*>(&low) + sizeof left, sizeof right);
    left += right;
    return (left[0] + left[2]) + (left[1] + left[3]);
}

/// Sum of f(i) for i in [0, n) in `lanes` interleaved partial sums, then pairwise.
template <typename Function>
inline float lane_sum(std::int64_t n, Function f) {
    float partial[lanes] = {};
    std::int64_t i = 0;
    for (; i + lanes <= n; i += lanes)
        for (int l = 0; l < lanes; ++l) partial[l] += f(i + l);
    for (int l = 0; i + l < n; ++l) partial[l] += f(i + l);
    return sum_of_lanes(partial);
}

/// Largest of n numbers, `start` where there is none.
inline float lane_max(std::int64_t n, float start, const float* x) {
    using Eight [[gnu::vector_size(32)]] = float;  // the compiler leaves a loop over an array of lanes scalar
    Eight a = start - Eight{}, b = a;
    std::int64_t i = 0;
    for (; i + lanes <= n; i += lanes) {
        Eight low, high;
        std::memcpy(&low, x + i, sizeof low);
        std::memcpy(&high, x + i + lanes / 2, sizeof high);
        a = low > a ? low : a;
        b = high > b ? high : b;
    }
    a = b > a ? b : a;
    float most = start;
    for (; i < n; ++i) most = x[i] > most ? x[i] : most;
    for (int width = lanes / 4; width > 0; width /= 2)
        for (int l = 0; l < width; ++l) a[l] = a[l + width] > a[l] ? a[l + width] : a[l];
    return a[0] > most ? a[0] : most;
}

}  // namespace atelier::ops::cpu
