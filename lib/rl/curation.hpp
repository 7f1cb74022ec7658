#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "rl/advantage.hpp"

namespace atelier::rl {

struct CurationRule {
    double range_min = 0.5;  ///< max - min of the group's weighted totals (points)
    std::optional<double> mean_low, mean_high;  ///< band of the group's mean total
};

enum class CurationVerdict { kept, range_too_small, mean_too_low, mean_too_high, no_reward };
const char* name_of(CurationVerdict verdict);

struct CurationDecision {
    CurationVerdict verdict = CurationVerdict::no_reward;
    double mean = 0, range = 0;
    int samples = 0;  ///< with a total
};

/// Keep a prompt? `totals`: the weighted reward of each member that has one (see weighted_total).
/// Throws Error(numeric) for a total that is not finite.
CurationDecision curate(const CurationRule& rule, std::span<const double> totals);

/// What the advantage's terms w_k z_k / (sum of the weights that a sample has) are like over the samples of one category, whatever the
/// weights are: second moments of the z-scores, apart for the samples that have the same dimensions. z = 0 where the advantage has nothing
/// of a dimension: of an absent score, and in a group where its range is below min_spread.
class SpreadCollector {
  public:
    explicit SpreadCollector(int dimensions);
    /// One group, as in group_advantage. Order matters in the last bits only: add groups in prompt
    /// order.
    void add_group(const AdvantageConfig& config, int members, std::span<const float> scores,
                   std::span<const std::uint8_t> present);
    int dimensions() const { return dimensions_; }
    /// Which dimensions any sample had, [K].
    std::vector<bool> seen() const;
    /// sum z_k z_l / sqrt(n_k n_l), n_k the samples that have k, [K, K] row-major: a dimension's own entry is what its z-scores are like
    /// where it is there, not how often it is. Zeros before any sample.
    std::vector<double> covariance() const;
    /// Share of each dimension in the variance of all samples' advantages (before they are clipped) under some weights, [K]; zeros where
    /// there is none. A dimension that few samples have makes a small one whatever it weighs: those without it are the others'.
    std::vector<double> variance_shares(std::span<const double> weights) const;
    /// Mean over groups (with at least two present scores) of the population std, points, [K].
    std::vector<double> mean_std() const;

  private:
    struct Pattern {
        std::int64_t samples = 0;
        std::vector<double> moments;  ///< sum of z_k z_l, [K, K]
    };
    int dimensions_;
    std::map<std::vector<bool>, Pattern> patterns_;  ///< by which dimensions a sample has, [K]
    std::vector<double> std_sum_;
    std::vector<std::int64_t> groups_;
};

struct CalibratedWeights {
    std::vector<double> weights;  ///< [K], sum 1
    std::vector<std::uint8_t>
        calibrated;  ///< [K]; 0: too little spread, the asked share was taken as weight
};

/// Weights under which dimension k contributes the share `shares[k]` of the advantage's variance among samples that have all dimensions:
/// w_k (C w)_k / w'Cw = shares_k, C = covariance. For C positive definite the solution is unique:
/// the minimum of w'Cw/2 - sum shares_k ln w_k (risk budgeting; Spinu 2013), found by coordinate
/// descent (Griveau-Billion, Richard, Roncalli 2013, arXiv 1311.4057). Dimensions with
/// C_kk < min_variance (nearly always without spread) or share 0 are left out of the balance.
/// Throws Error(usage) for negative shares or none positive.
CalibratedWeights calibrate_weights(std::span<const double> covariance,
                                    std::span<const double> shares, double min_variance = 0.02);

/// Weights of every dimension of a category, [K], from the shares asked for, [K]; a share of 0 gives the weight 0. Of the dimensions that
/// any sample had (`seen`, [K]) they are calibrate_weights' or, without `calibrates`, the shares themselves. One that no sample had
/// may come up in training; nothing is known of its spread, so it weighs what its share is of theirs: share x (sum of their weights / sum
/// of their shares), their mean weight where shares are equal. Throws Error(usage) for negative shares.
std::vector<double> weigh_dimensions(std::span<const double> covariance, std::span<const double> shares,
                                     const std::vector<bool>& seen, bool calibrates);

}  // namespace atelier::rl
