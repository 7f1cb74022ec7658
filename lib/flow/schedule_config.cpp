#include "flow/schedule_config.hpp"

#include <cmath>
#include <string_view>

#include "core/error.hpp"
#include "core/json.hpp"

namespace atelier::flow {
namespace {

using Json = nlohmann::json;

std::int64_t positive_integer(const Json& value, const std::string& key, const std::string& place) {
    ATELIER_CHECK_INPUT(value.is_number_integer() && value.get<std::int64_t>() >= 1,
                        "{}: \"{}\" must be an integer of at least 1, found {}", place, key,
                        value.dump());
    return value.get<std::int64_t>();
}

double number(const Json& value, const std::string& key, const std::string& place) {
    ATELIER_CHECK_INPUT(value.is_number() && std::isfinite(value.get<double>()),
                        "{}: \"{}\" must be a number, found {}", place, key, value.dump());
    return value.get<double>();
}

bool flag(const Json& value, const std::string& key, const std::string& place) {
    ATELIER_CHECK_INPUT(value.is_boolean(), "{}: \"{}\" must be true or false, found {}", place,
                        key, value.dump());
    return value.get<bool>();
}

bool is_unsupported_flag(std::string_view key) {
    return key == "invert_sigmas" || key == "stochastic_sampling" || key == "use_karras_sigmas" ||
           key == "use_exponential_sigmas" || key == "use_beta_sigmas";
}

void apply(ScheduleConfig& config, const std::string& key, const Json& value,
           const std::string& place) {
    if (key == "num_train_timesteps") {
        config.num_train_timesteps = positive_integer(value, key, place);
        ATELIER_CHECK_INPUT(config.num_train_timesteps == 1000,
                            "{}: \"{}\" must be 1000, found {}: the pipeline divides timesteps by 1000 whatever the scheduler says, so "
                            "that another number would give the model other times than sigma", place, key, value.dump());
    } else if (key == "shift") {
        config.shift = number(value, key, place);
    } else if (key == "use_dynamic_shifting") {
        config.use_dynamic_shifting = flag(value, key, place);
    } else if (key == "base_shift") {
        config.base_shift = number(value, key, place);
    } else if (key == "max_shift") {
        config.max_shift = number(value, key, place);
    } else if (key == "base_image_seq_len") {
        config.base_image_seq_len = positive_integer(value, key, place);
    } else if (key == "max_image_seq_len") {
        config.max_image_seq_len = positive_integer(value, key, place);
    } else if (key == "shift_terminal") {
        const double terminal = number(value, key, place);
        ATELIER_CHECK_INPUT(terminal >= 0.0 && terminal < 1.0,
                            "{}: \"{}\" must lie in [0, 1), found {}", place, key, value.dump());
        if (terminal != 0.0)
            config.shift_terminal = terminal;  // diffusers takes 0 for "no stretch"
    } else if (key == "time_shift_type") {
        ATELIER_CHECK_INPUT(value == "exponential" || value == "linear",
                            "{}: \"{}\" must be \"exponential\" or \"linear\", found {}", place,
                            key, value.dump());
        config.time_shift = value == "linear" ? TimeShift::linear : TimeShift::exponential;
    } else if (is_unsupported_flag(key)) {
        ATELIER_CHECK_INPUT(
            !flag(value, key, place),
            "{}: \"{}\": {} is not supported; only false is. Use a scheduler without it", place,
            key, value.dump());
    } else {
        ATELIER_FAIL(ErrorKind::input, "{}: unknown key \"{}\" = {}; it may change the result",
                     place, key, value.dump());
    }
}

}  // namespace

ScheduleConfig parse_schedule_config(const Json& json, const std::string& place) {
    ATELIER_CHECK_INPUT(json.is_object(), "{}: expected a JSON object, found {}", place,
                        json.type_name());
    ScheduleConfig config;
    for (const auto& [key, value] : json.items()) {
        if (key == "_class_name") {
            ATELIER_CHECK_INPUT(
                value == "FlowMatchEulerDiscreteScheduler",
                "{}: \"_class_name\" must be \"FlowMatchEulerDiscreteScheduler\", found {}", place,
                value.dump());
        } else if (!key.starts_with('_') && !value.is_null()) {
            apply(config, key, value, place);
        }
    }
    ATELIER_CHECK_INPUT(config.shift > 0.0, "{}: \"shift\" must be positive, found {}", place,
                        config.shift);
    ATELIER_CHECK_INPUT(
        config.max_image_seq_len != config.base_image_seq_len,
        "{}: \"base_image_seq_len\" and \"max_image_seq_len\" are both {}: mu is not defined",
        place, config.base_image_seq_len);
    return config;
}

ScheduleConfig read_schedule_config(const std::filesystem::path& path) {
    ATELIER_CHECK_INPUT(std::filesystem::exists(path),
                        "{}: cannot be read; a model directory has scheduler/scheduler_config.json",
                        path.string());
    return parse_schedule_config(read_json(path), path.string());
}

}  // namespace atelier::flow
