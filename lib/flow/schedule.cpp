#include "flow/schedule.hpp"

#include <cmath>

#include "core/error.hpp"

namespace atelier::flow {
namespace {

void shift_sigmas(const ScheduleConfig& config, double mu, std::span<float> sigmas) {
    if (config.use_dynamic_shifting) {
        const float m =
            static_cast<float>(config.time_shift == TimeShift::exponential ? std::exp(mu) : mu);
        for (float& sigma : sigmas) sigma = m / (m + (1.0f / sigma - 1.0f));
    } else {
        const float shift = static_cast<float>(config.shift),
                    less = static_cast<float>(config.shift - 1.0);
        for (float& sigma : sigmas) sigma = shift * sigma / (1.0f + less * sigma);
    }
}

void stretch_to_terminal(double terminal, std::span<float> sigmas) {
    const float scale = (1.0f - sigmas.back()) / static_cast<float>(1.0 - terminal);
    for (float& sigma : sigmas) sigma = 1.0f - (1.0f - sigma) / scale;
}

}  // namespace

double shift_mu(const ScheduleConfig& config, std::int64_t tokens) {
    const double slope = (config.max_shift - config.base_shift) /
                         static_cast<double>(config.max_image_seq_len - config.base_image_seq_len);
    const double offset =
        config.base_shift - slope * static_cast<double>(config.base_image_seq_len);
    return static_cast<double>(tokens) * slope + offset;
}

Schedule make_schedule(const ScheduleConfig& config, int steps, std::int64_t tokens) {
    ATELIER_CHECK_USAGE(steps >= 1, "the number of steps must be at least 1, found {}", steps);
    std::vector<double> base(static_cast<std::size_t>(steps), 1.0);
    if (steps > 1) {  // numpy's linspace: index x step + start, the last one exact
        const double last = 1.0 / steps, step = (last - 1.0) / (steps - 1);
        for (int i = 0; i < steps; ++i) base[static_cast<std::size_t>(i)] = i * step + 1.0;
        base.back() = last;
    }
    return make_schedule(config, base, tokens);
}

Schedule make_schedule(const ScheduleConfig& config, std::span<const double> base_sigmas,
                       std::int64_t tokens) {
    ATELIER_CHECK_USAGE(!base_sigmas.empty(), "a schedule needs at least one sigma");
    ATELIER_CHECK_USAGE(tokens >= 1, "the number of latent tokens must be at least 1, found {}",
                        tokens);
    for (std::size_t i = 0; i < base_sigmas.size(); ++i) {
        const double sigma = base_sigmas[i];
        ATELIER_CHECK_USAGE(sigma > 0.0 && sigma <= 1.0 && (i == 0 || sigma < base_sigmas[i - 1]),
                            "sigmas must fall and lie in (0, 1], found {} at index {}", sigma, i);
    }
    Schedule schedule;
    schedule.sigmas.assign(base_sigmas.begin(), base_sigmas.end());
    if (config.use_dynamic_shifting) {
        schedule.mu = shift_mu(config, tokens);
        ATELIER_CHECK_USAGE(config.time_shift == TimeShift::exponential || schedule.mu > 0.0,
                            "a linear time shift needs mu > 0, found {} for {} tokens", schedule.mu,
                            tokens);
    }
    shift_sigmas(config, schedule.mu, schedule.sigmas);
    if (config.shift_terminal) {
        ATELIER_CHECK_USAGE(schedule.sigmas.back() < 1.0f,
                            "shift_terminal = {} needs at least two steps: the only sigma is 1 and "
                            "cannot be stretched",
                            *config.shift_terminal);
        stretch_to_terminal(*config.shift_terminal, schedule.sigmas);
    }
    const float train_timesteps = static_cast<float>(config.num_train_timesteps);
    schedule.timesteps.reserve(schedule.sigmas.size());
    for (const float sigma : schedule.sigmas) schedule.timesteps.push_back(sigma * train_timesteps);
    schedule.sigmas.push_back(0.0f);
    return schedule;
}

}  // namespace atelier::flow
