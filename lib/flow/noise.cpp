#include "flow/noise.hpp"

#include "core/error.hpp"

namespace atelier::flow {

RandomKey sample_noise_key(std::uint64_t seed, std::uint64_t iteration, std::uint64_t prompt,
                           std::uint64_t member) {
    return random_key(seed, RandomUse::initial_noise, iteration, prompt, member);
}

RandomKey initial_noise_key(RandomKey sample) { return sample; }

RandomKey step_noise_key(RandomKey sample, int step) {
    ATELIER_CHECK(step >= 0, "step {} of a trajectory", step);
    return random_key(sample.low, RandomUse::step_noise, sample.high,
                      static_cast<std::uint64_t>(step));
}

}  // namespace atelier::flow
