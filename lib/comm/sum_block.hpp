#pragma once

#include <cstddef>

namespace atelier::comm {

/// Numbers gathered at a time for a sum in rank order: 4 MB of floats from every rank.
inline constexpr std::size_t sum_block = 1 << 20;

}  // namespace atelier::comm
