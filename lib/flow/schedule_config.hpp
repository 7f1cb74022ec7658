#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

namespace atelier::flow {

enum class TimeShift { exponential, linear };

/// What scheduler_config.json of a FlowMatchEulerDiscreteScheduler says; absent keys have
/// diffusers' defaults.
struct ScheduleConfig {
    std::int64_t num_train_timesteps = 1000;  ///< timestep = sigma x this; no other number is read
    double shift = 1.0;                       ///< static shift, used without dynamic shifting
    bool use_dynamic_shifting = false;
    double base_shift = 0.5,
           max_shift = 1.15;  ///< mu at base_image_seq_len and at max_image_seq_len
    std::int64_t base_image_seq_len = 256, max_image_seq_len = 4096;  ///< latent tokens
    std::optional<double> shift_terminal;  ///< last sigma before the appended 0; none: no stretch
    TimeShift time_shift = TimeShift::exponential;
};

/// Reads the JSON object; `place` (a file name) stands in messages. Throws Error(input) naming the
/// key and the value: another class, an unknown key, a wrong type, a setting that is not supported
/// (invert_sigmas, stochastic_sampling, use_karras_sigmas, use_exponential_sigmas,
/// use_beta_sigmas, num_train_timesteps other than 1000).
ScheduleConfig parse_schedule_config(const nlohmann::json& config, const std::string& place);

/// `path`: scheduler/scheduler_config.json of a model directory.
ScheduleConfig read_schedule_config(const std::filesystem::path& path);

}  // namespace atelier::flow
