#include "rl/advantage.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.hpp"

namespace atelier::rl {
namespace {

DimensionSpread spread_of(int members, std::size_t dimensions, std::size_t k,
                          std::span<const float> scores, std::span<const std::uint8_t> present) {
    DimensionSpread spread;
    double low = std::numeric_limits<double>::infinity(), high = -low, sum = 0;
    for (int j = 0; j < members; ++j) {
        const std::size_t at = static_cast<std::size_t>(j) * dimensions + k;
        if (!present[at]) continue;
        const double score = scores[at];
        ATELIER_CHECK_KIND(ErrorKind::numeric, std::isfinite(score),
                           "member {}, dimension {}: the score is {}; a failed reward must be "
                           "absent, never a number",
                           j, k, score);
        low = std::min(low, score);
        high = std::max(high, score);
        sum += score;
        ++spread.present;
    }
    if (spread.present == 0) return spread;
    spread.range = high - low;
    spread.mean = sum / spread.present;
    double squares = 0;
    for (int j = 0; j < members; ++j) {
        const std::size_t at = static_cast<std::size_t>(j) * dimensions + k;
        if (present[at]) squares += (scores[at] - spread.mean) * (scores[at] - spread.mean);
    }
    spread.std = std::sqrt(squares / spread.present);
    return spread;
}

}  // namespace

GroupAdvantage group_advantage(const AdvantageConfig& config, int members,
                               std::span<const float> scores, std::span<const std::uint8_t> present,
                               std::span<const double> weights) {
    const std::size_t dimensions = weights.size();
    const auto count = static_cast<std::size_t>(members) * dimensions;
    ATELIER_CHECK(members > 0 && scores.size() == count && present.size() == count,
                  "a group of {} members and {} dimensions has {} scores and {} presence flags",
                  members, dimensions, scores.size(), present.size());
    ATELIER_CHECK_USAGE(config.epsilon > 0.0 && config.clip > 0.0,
                        "epsilon and clip of the advantage must be positive, found {} and {}",
                        config.epsilon, config.clip);
    double weight_sum = 0;
    for (std::size_t k = 0; k < dimensions; ++k) {
        ATELIER_CHECK_USAGE(weights[k] >= 0.0 && std::isfinite(weights[k]),
                            "the weight of dimension {} must be at least 0, found {}", k,
                            weights[k]);
        weight_sum += weights[k];
    }
    ATELIER_CHECK_USAGE(weight_sum > 0.0, "at least one dimension needs a positive weight");

    GroupAdvantage result;
    result.advantage.assign(static_cast<std::size_t>(members), 0.0);
    result.valid.assign(static_cast<std::size_t>(members), 0);
    result.dropped = true;
    for (std::size_t k = 0; k < dimensions; ++k) {
        result.spread.push_back(spread_of(members, dimensions, k, scores, present));
        if (weights[k] > 0.0 && result.spread[k].range >= config.min_spread &&
            result.spread[k].range > 0.0)
            result.dropped = false;
    }
    for (std::size_t j = 0; j < result.advantage.size(); ++j) {
        double sum = 0, total = 0;
        for (std::size_t k = 0; k < dimensions; ++k) {
            if (!present[j * dimensions + k]) continue;
            const DimensionSpread& spread = result.spread[k];
            sum += weights[k];
            if (spread.range >= config.min_spread)
                total += weights[k] * (scores[j * dimensions + k] - spread.mean) / (spread.std + config.epsilon);
        }
        if (sum <= 0.0) continue;
        result.valid[j] = 1;
        if (!result.dropped)
            result.advantage[j] = std::clamp(total / sum, -config.clip, config.clip);
    }
    return result;
}

}  // namespace atelier::rl
