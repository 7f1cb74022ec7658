#include "optim/learning_rate.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/error.hpp"

namespace atelier::optim {

RateShape parse_rate_shape(const std::string& word) {
    if (word == "constant") return RateShape::constant;
    if (word == "cosine") return RateShape::cosine;
    ATELIER_FAIL(ErrorKind::usage,
                 "the learning rate's shape must be constant or cosine, found \"{}\"", word);
}

double LearningRate::at(std::int64_t update) const {
    ATELIER_CHECK_USAGE(rate >= 0.0 && std::isfinite(rate),
                        "the learning rate must be at least 0, found {}", rate);
    ATELIER_CHECK_USAGE(warm_up >= 0, "warm-up updates must be at least 0, found {}", warm_up);
    ATELIER_CHECK_USAGE(floor >= 0.0 && floor <= 1.0, "the floor must lie in [0, 1], found {}",
                        floor);
    ATELIER_CHECK_USAGE(shape == RateShape::constant || total > warm_up,
                        "cosine needs more updates in total than in warm-up, found {} and {}",
                        total, warm_up);
    if (update <= warm_up) return rate * static_cast<double>(update) / static_cast<double>(warm_up);
    if (shape == RateShape::constant) return rate;
    const double done = std::min(1.0, static_cast<double>(update - 1 - warm_up) / static_cast<double>(total - warm_up));
    return rate * (floor + (1.0 - floor) * 0.5 * (1.0 + std::cos(std::numbers::pi * done)));
}

}  // namespace atelier::optim
