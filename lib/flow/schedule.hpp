#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "flow/schedule_config.hpp"

namespace atelier::flow {

/// Noise levels of one trajectory. sigma = t: 1 is pure noise, 0 the image.
struct Schedule {
    std::vector<float> sigmas;     ///< [N + 1], falling, the last is 0
    std::vector<float> timesteps;  ///< [N], sigma x num_train_timesteps
    double mu = 0;                 ///< shift used; 0 without dynamic shifting
    int steps() const { return static_cast<int>(timesteps.size()); }
};

/// mu, linear in the number of latent tokens of the target (diffusers' calculate_shift, not
/// clamped).
double shift_mu(const ScheduleConfig& config, std::int64_t tokens);

/// FlowMatchEulerDiscreteScheduler.set_timesteps of linspace(1, 1/steps, steps): shift, stretch to
/// shift_terminal, 0 appended, in float32 operation by operation as diffusers does it. Throws
/// Error(usage) for steps < 1, tokens < 1, or one step with shift_terminal (the stretch divides by
/// 0).
Schedule make_schedule(const ScheduleConfig& config, int steps, std::int64_t tokens);

/// The same from given sigmas before shifting (a pipeline's `sample_sigmas`): falling, in (0, 1].
Schedule make_schedule(const ScheduleConfig& config, std::span<const double> base_sigmas,
                       std::int64_t tokens);

}  // namespace atelier::flow
