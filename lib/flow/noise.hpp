#pragma once

#include <cstdint>

#include "core/philox.hpp"

namespace atelier::flow {

/// Key of one sample (the shard's noise_key): everything random in its trajectory follows from it.
/// Depends on meanings only, never on the rank. `prompt` is the prompt's own number, not its place
/// in a batch.
RandomKey sample_noise_key(std::uint64_t seed, std::uint64_t iteration, std::uint64_t prompt,
                           std::uint64_t member);

/// Keys for core's fill_normal: the state at t = 1, and the noise of SDE step `step`.
RandomKey initial_noise_key(RandomKey sample);
RandomKey step_noise_key(RandomKey sample, int step);

}  // namespace atelier::flow
