#include "rl/curation.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "core/error.hpp"

namespace atelier::rl {

const char* name_of(CurationVerdict verdict) {
    switch (verdict) {
        case CurationVerdict::kept:
            return "kept";
        case CurationVerdict::range_too_small:
            return "range_too_small";
        case CurationVerdict::mean_too_low:
            return "mean_too_low";
        case CurationVerdict::mean_too_high:
            return "mean_too_high";
        case CurationVerdict::no_reward:
            return "no_reward";
    }
    return "unknown";
}

CurationDecision curate(const CurationRule& rule, std::span<const double> totals) {
    CurationDecision decision;
    decision.samples = static_cast<int>(totals.size());
    if (totals.empty()) return decision;
    double sum = 0;
    for (std::size_t i = 0; i < totals.size(); ++i) {
        ATELIER_CHECK_KIND(ErrorKind::numeric, std::isfinite(totals[i]),
                           "the total of member {} is {}", i, totals[i]);
        sum += totals[i];
    }
    const auto [low, high] = std::minmax_element(totals.begin(), totals.end());
    decision.mean = sum / static_cast<double>(totals.size());
    decision.range = *high - *low;
    if (decision.range < rule.range_min) {
        decision.verdict = CurationVerdict::range_too_small;
    } else if (rule.mean_low && decision.mean < *rule.mean_low) {
        decision.verdict = CurationVerdict::mean_too_low;
    } else if (rule.mean_high && decision.mean > *rule.mean_high) {
        decision.verdict = CurationVerdict::mean_too_high;
    } else {
        decision.verdict = CurationVerdict::kept;
    }
    return decision;
}

SpreadCollector::SpreadCollector(int dimensions)
    : dimensions_(dimensions),
      std_sum_(static_cast<std::size_t>(dimensions), 0.0),
      groups_(static_cast<std::size_t>(dimensions), 0) {
    ATELIER_CHECK(dimensions > 0, "{} reward dimensions", dimensions);
}

void SpreadCollector::add_group(const AdvantageConfig& config, int members,
                                std::span<const float> scores,
                                std::span<const std::uint8_t> present) {
    const auto count = static_cast<std::size_t>(dimensions_);
    const std::vector<double> ones(count, 1.0);
    const GroupAdvantage group = group_advantage(config, members, scores, present, ones);
    std::vector<double> z(count);
    for (std::size_t j = 0; j < static_cast<std::size_t>(members); ++j) {
        const auto has = present.subspan(j * count, count);
        Pattern& pattern = patterns_.try_emplace({has.begin(), has.end()}, Pattern{0, std::vector<double>(count * count)}).first->second;
        ++pattern.samples;
        for (std::size_t k = 0; k < count; ++k) {
            const DimensionSpread& spread = group.spread[k];
            const bool is_heard = has[k] != 0 && spread.range >= config.min_spread;
            z[k] = is_heard ? (scores[j * count + k] - spread.mean) / (spread.std + config.epsilon) : 0.0;
        }
        for (std::size_t k = 0; k < count; ++k)
            for (std::size_t l = 0; l < count; ++l) pattern.moments[k * count + l] += z[k] * z[l];
    }
    for (std::size_t k = 0; k < count; ++k) {
        if (group.spread[k].present < 2) continue;
        std_sum_[k] += group.spread[k].std;
        ++groups_[k];
    }
}

std::vector<double> SpreadCollector::covariance() const {
    const auto count = static_cast<std::size_t>(dimensions_);
    std::vector<double> result(count * count), samples(count);
    for (const auto& [has, pattern] : patterns_) {
        for (std::size_t k = 0; k < count; ++k)
            if (has[k]) samples[k] += static_cast<double>(pattern.samples);
        for (std::size_t i = 0; i < result.size(); ++i) result[i] += pattern.moments[i];
    }
    for (std::size_t k = 0; k < count; ++k)
        for (std::size_t l = 0; l < count; ++l)
            if (double& value = result[k * count + l]; value != 0.0) value /= std::sqrt(samples[k] * samples[l]);
    return result;
}

std::vector<double> SpreadCollector::variance_shares(std::span<const double> weights) const {
    const std::size_t count = weights.size();
    ATELIER_CHECK(std::cmp_equal(count, dimensions_), "{} weights for {} dimensions", count, dimensions_);
    std::vector<double> shares(count, 0.0);
    double variance = 0;
    for (const auto& [has, pattern] : patterns_) {
        double sum = 0;
        for (std::size_t k = 0; k < count; ++k)
            if (has[k]) sum += weights[k];
        if (sum <= 0.0) continue;
        for (std::size_t k = 0; k < count; ++k)
            for (std::size_t l = 0; l < count; ++l) {
                const double term = weights[k] / sum * pattern.moments[k * count + l] * weights[l] / sum;
                shares[k] += term;
                variance += term;
            }
    }
    if (variance > 0.0)
        for (double& share : shares) share /= variance;
    return shares;
}

std::vector<bool> SpreadCollector::seen() const {
    std::vector<bool> result(static_cast<std::size_t>(dimensions_));
    for (const auto& [has, pattern] : patterns_)
        for (std::size_t k = 0; k < result.size(); ++k) result[k] = result[k] || has[k];
    return result;
}

std::vector<double> SpreadCollector::mean_std() const {
    std::vector<double> result = std_sum_;
    for (std::size_t k = 0; k < result.size(); ++k)
        if (groups_[k] > 0) result[k] /= static_cast<double>(groups_[k]);
    return result;
}

CalibratedWeights calibrate_weights(std::span<const double> covariance,
                                    std::span<const double> shares, double min_variance) {
    const std::size_t count = shares.size();
    ATELIER_CHECK(count > 0 && covariance.size() == count * count,
                  "{} shares, a covariance of {} numbers", count, covariance.size());
    double share_sum = 0, balanced_sum = 0;
    CalibratedWeights result;
    for (std::size_t k = 0; k < count; ++k) {
        ATELIER_CHECK_USAGE(shares[k] >= 0.0 && std::isfinite(shares[k]),
                            "the share of dimension {} must be at least 0, found {}", k, shares[k]);
        share_sum += shares[k];
        result.calibrated.push_back(
            shares[k] > 0.0 && covariance[k * count + k] >= min_variance ? 1 : 0);
        if (result.calibrated[k]) balanced_sum += shares[k];
    }
    ATELIER_CHECK_USAGE(share_sum > 0.0, "at least one dimension needs a positive share");

    std::vector<double>& w = result.weights;
    w.assign(count, 0.0);
    for (std::size_t k = 0; k < count; ++k)
        if (result.calibrated[k]) w[k] = 1.0 / std::sqrt(covariance[k * count + k]);
    constexpr int max_sweeps =
        10000;  // linear convergence; a handful suffices unless C is nearly singular
    for (int sweep = 0; sweep < max_sweeps; ++sweep) {
        double change = 0;
        for (std::size_t k = 0; k < count; ++k) {
            if (!result.calibrated[k]) continue;
            double others = 0;
            for (std::size_t l = 0; l < count; ++l)
                if (l != k) others += covariance[k * count + l] * w[l];
            const double own = covariance[k * count + k], share = shares[k] / balanced_sum;
            const double next =
                (-others + std::sqrt(others * others + 4.0 * own * share)) / (2.0 * own);
            change = std::max(change, std::abs(next - w[k]) / next);
            w[k] = next;
        }
        if (change < 1e-13) break;
    }
    double sum = 0;
    for (const double value : w) sum += value;
    for (std::size_t k = 0; k < count; ++k) {
        const double balanced = sum > 0.0 ? w[k] / sum * (balanced_sum / share_sum) : 0.0;
        w[k] = result.calibrated[k] ? balanced : shares[k] / share_sum;
    }
    return result;
}

std::vector<double> weigh_dimensions(std::span<const double> covariance, std::span<const double> shares,
                                     const std::vector<bool>& seen, bool calibrates) {
    ATELIER_CHECK(seen.size() == shares.size(), "{} flags for {} shares", seen.size(), shares.size());
    std::vector<double> weights(shares.begin(), shares.end());
    for (std::size_t k = 0; k < weights.size(); ++k)
        if (!seen[k]) weights[k] = 0;
    const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
    double unit = 1.0;  // of weight for a share
    if (calibrates && sum > 0.0) {
        weights = calibrate_weights(covariance, weights).weights;
        unit = 1.0 / sum;
    }
    for (std::size_t k = 0; k < weights.size(); ++k)
        if (!seen[k]) weights[k] = unit * shares[k];
    return weights;
}

}  // namespace atelier::rl
