#include "rl/ema.hpp"

#include <algorithm>

#include "core/error.hpp"
#include "core/parallel.hpp"
#include "ops/backend.hpp"

namespace atelier::rl {

double ema_decay(double decay, std::int64_t updates, bool warm_up) {
    ATELIER_CHECK_USAGE(decay >= 0.0 && decay < 1.0, "the EMA decay must lie in [0, 1), found {}",
                        decay);
    if (!warm_up) return decay;
    return std::min(decay, static_cast<double>(1 + updates) / static_cast<double>(10 + updates));
}

void ema_update(std::span<float> average, std::span<const float> weights, double decay) {
    ATELIER_CHECK(average.size() == weights.size(), "an average of {} numbers, {} weights",
                  average.size(), weights.size());
    const float share = static_cast<float>(1.0 - decay);
    if (current_device() == Device::cuda)
        return ops::backend().difference_gradient(static_cast<std::int64_t>(average.size()), share, weights.data(), average.data(), average.data());
    parallel_for(static_cast<std::int64_t>(average.size()), 1 << 15,
                 [&](std::int64_t begin, std::int64_t end) {
                     float* a = average.data();
                     const float* w = weights.data();
                     for (std::int64_t i = begin; i < end; ++i) a[i] = a[i] + share * (w[i] - a[i]);
                 });
}

}  // namespace atelier::rl
