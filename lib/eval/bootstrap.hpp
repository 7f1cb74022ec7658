#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/philox.hpp"

namespace atelier::eval {

struct BootstrapConfig {
    int resamples = 2000;
    double level = 0.95;
    std::uint64_t seed = 0;
    std::uint64_t stream =
        0;  ///< another number for another quantity, if they should be independent
};

struct Interval {
    double mean = 0, low = 0, high = 0;
    std::int64_t n = 0;         ///< values
    std::int64_t clusters = 0;  ///< resampled units; with fewer than 2 low = high = mean
};

/// Percentile interval of the mean (Efron & Tibshirani 1993, ch. 13), by resampling clusters with
/// replacement: all samples of a prompt stay together. `cluster[i]`: prompt of value i, any
/// numbers. Throws Error(input) without values, Error(numeric) for a value that is not finite.
Interval bootstrap_mean(const BootstrapConfig& config, std::span<const double> values,
                        std::span<const std::uint64_t> cluster);

/// Interval of mean(after - before) over pairs (same prompt, same seed).
Interval bootstrap_difference(const BootstrapConfig& config, std::span<const double> before,
                              std::span<const double> after,
                              std::span<const std::uint64_t> cluster);

/// Value at `share` of sorted numbers, linear between neighbours (numpy's default).
double percentile(std::span<const double> sorted, double share);

/// Resampled cluster multiplicities, [clusters], of resample `index`: how the intervals here draw.
void draw_multiplicities(const BootstrapConfig& config, int index, std::span<int> multiplicity);

}  // namespace atelier::eval
