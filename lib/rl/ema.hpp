#pragma once

#include <cstdint>
#include <span>

namespace atelier::rl {

/// Decay of update number `updates` (from 0): min(decay, (1 + updates) / (10 + updates)), so that
/// the average forgets its start; `decay` itself without warm_up. Throws Error(usage) outside [0,
/// 1).
double ema_decay(double decay, std::int64_t updates, bool warm_up);

/// average = average + (1 - decay) (weights - average), element by element, fp32, in parallel,
/// where the calling thread's operations run.
void ema_update(std::span<float> average, std::span<const float> weights, double decay);

}  // namespace atelier::rl
