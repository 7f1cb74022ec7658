#pragma once

#include <array>
#include <cstddef>

namespace atelier::flow {

/// Sum of term(i), i < n, in double, in an order that depends on n alone: eight running sums by
/// i mod 8 (so that it vectorises), added pairwise at the end.
template <typename Term>
double ordered_sum(std::size_t n, Term&& term) {
    constexpr std::size_t lanes = 8;
    std::array<double, lanes> sums{};
    std::size_t i = 0;
    for (; i + lanes <= n; i += lanes)
        for (std::size_t lane = 0; lane < lanes; ++lane) sums[lane] += term(i + lane);
    for (std::size_t lane = 0; i < n; ++i, ++lane) sums[lane] += term(i);
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) +
           ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

}  // namespace atelier::flow
