#pragma once

#include <cmath>
#include <filesystem>
#include <span>

#include "core/error.hpp"

namespace atelier::identity {

/// Scales a vector to unit length. Throws Error(input) naming what made it if it has none.
inline void make_unit(std::span<float> v, const std::filesystem::path& made_by) {
    double square = 0;
    for (const float x : v) square += static_cast<double>(x) * x;
    ATELIER_CHECK_INPUT(std::isfinite(square) && square > 0, "{} gives an embedding of length {}", made_by.string(), std::sqrt(square));
    for (float& x : v) x = static_cast<float>(x / std::sqrt(square));
}

}  // namespace atelier::identity
