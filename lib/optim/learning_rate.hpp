#pragma once

#include <cstdint>
#include <string>

namespace atelier::optim {

enum class RateShape { constant, cosine };
RateShape parse_rate_shape(const std::string& word);  ///< throws Error(usage)

/// Learning rate by update number. Warm-up: rate * update / warm_up, update from 1 (the first
/// update already moves). After it constant, or half a cosine from rate, which the first update after warm-up has, down to rate * floor,
/// which the one after the last of `total` would have: every update moves.
struct LearningRate {
    double rate = 1e-5;
    RateShape shape = RateShape::constant;
    std::int64_t warm_up = 0;  ///< updates
    std::int64_t total = 0;    ///< updates; needed by cosine
    double floor = 0.0;        ///< share of `rate` at the end of cosine
    /// Rate of update number `update` >= 1. Throws Error(usage) for settings that make no sense.
    double at(std::int64_t update) const;
};

}  // namespace atelier::optim
