#pragma once

#include <cstdint>
#include <optional>
#include <span>

namespace atelier::rl {

/// Gated tiers (design: T2I): a sample that fails a lower tier does not profit from higher ones.
struct TierGate {
    double gate = 3.0;  ///< a tier with a score below this fails (scores: 1..5)
    std::optional<double>
        cap;  ///< what the tiers above are capped at; none: the failing tier's own score
};

/// Caps `scores` [K] of one sample in place. `tiers`: of each dimension, lowest first; dimensions of
/// one tier do not cap each other. An absent score neither fails nor is touched. Returns how
/// many scores were lowered. Throws Error(numeric) for a present score that is not finite.
int gate_tiers(const TierGate& gate, std::span<const std::int64_t> tiers,
               std::span<const std::uint8_t> present, std::span<float> scores);

/// sum w_k R_k / sum w_k over the dimensions present in one sample; none if no weighted dimension
/// is. Throws Error(numeric) for a score that is not finite, Error(usage) for a negative weight.
std::optional<double> weighted_total(std::span<const float> scores,
                                     std::span<const std::uint8_t> present,
                                     std::span<const double> weights);

}  // namespace atelier::rl
