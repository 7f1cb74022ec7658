#include "rl/reward_total.hpp"

#include <algorithm>
#include <cmath>

#include "core/error.hpp"

namespace atelier::rl {

int gate_tiers(const TierGate& gate, std::span<const std::int64_t> tiers,
               std::span<const std::uint8_t> present, std::span<float> scores) {
    ATELIER_CHECK(present.size() == scores.size() && tiers.size() == scores.size(),
                  "{} presence flags and {} tiers for {} scores", present.size(), tiers.size(),
                  scores.size());
    ATELIER_CHECK(std::is_sorted(tiers.begin(), tiers.end()), "tiers do not stand lowest first");
    int lowered = 0;
    std::optional<double> cap, next;  // of this tier, and of those above it
    for (std::size_t k = 0; k < scores.size(); ++k) {
        if (k > 0 && tiers[k] > tiers[k - 1]) cap = next;
        if (!present[k]) continue;
        ATELIER_CHECK_KIND(
            ErrorKind::numeric, std::isfinite(scores[k]),
            "the score of dimension {} is {}; a failed reward must be absent, never a number", k,
            scores[k]);
        const double own = scores[k];
        if (cap && own > *cap) {
            scores[k] = static_cast<float>(*cap);
            ++lowered;
        }
        if (own < gate.gate) next = std::min(next.value_or(own), gate.cap.value_or(own));
    }
    return lowered;
}

std::optional<double> weighted_total(std::span<const float> scores,
                                     std::span<const std::uint8_t> present,
                                     std::span<const double> weights) {
    ATELIER_CHECK(present.size() == scores.size() && weights.size() == scores.size(),
                  "{} scores, {} presence flags, {} weights", scores.size(), present.size(),
                  weights.size());
    double sum = 0, total = 0;
    for (std::size_t k = 0; k < scores.size(); ++k) {
        ATELIER_CHECK_USAGE(weights[k] >= 0.0,
                            "the weight of dimension {} must be at least 0, found {}", k,
                            weights[k]);
        if (!present[k]) continue;
        ATELIER_CHECK_KIND(
            ErrorKind::numeric, std::isfinite(scores[k]),
            "the score of dimension {} is {}; a failed reward must be absent, never a number", k,
            scores[k]);
        sum += weights[k];
        total += weights[k] * static_cast<double>(scores[k]);
    }
    if (sum <= 0.0) return std::nullopt;
    return total / sum;
}

}  // namespace atelier::rl
