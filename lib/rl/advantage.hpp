#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace atelier::rl {

struct AdvantageConfig {
    double epsilon = 1e-4;  ///< added to the standard deviation (points)
    double clip = 5.0;      ///< |A| at most
    double min_spread = 1e-3;  ///< max - min (points) below which a dimension says nothing about a group: z = 0, its weight counts
};

/// One dimension over the present scores of one group.
struct DimensionSpread {
    int present = 0;
    double mean = 0, std = 0;  ///< population standard deviation
    double range = 0;          ///< max - min
};

struct GroupAdvantage {
    std::vector<double> advantage;  ///< [G]; 0 for a sample without any weighted score
    std::vector<std::uint8_t>
        valid;  ///< [G]; 0: the sample has no weighted score and must not be trained on
    std::vector<DimensionSpread> spread;  ///< [K]
    bool dropped =
        false;  ///< no weighted dimension has a range of min_spread: no gradient, advantages all 0
};

/// Advantages of one prompt group (docs/method.md; per-dimension normalisation as in GDPO):
/// A_j = sum_k w_k (R_jk - mean_k) / (std_k + epsilon), the w of the dimensions present in sample j
/// scaled to sum to 1, then clipped. `scores`, `present` [G, K] row-major, `weights` [K] of the
/// prompt's category (any positive scale). Absent scores are left out of mean and std and never
/// read. Throws Error(numeric) naming member and dimension for a present score that is not finite;
/// Error(usage) for a negative weight or none positive.
GroupAdvantage group_advantage(const AdvantageConfig& config, int members,
                               std::span<const float> scores, std::span<const std::uint8_t> present,
                               std::span<const double> weights);

}  // namespace atelier::rl
