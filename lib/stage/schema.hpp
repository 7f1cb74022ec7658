#pragma once

#include <vector>

#include "config/config.hpp"

namespace atelier::stage {

/// Stages whose jobs' resources are slurm.<stage>.*
inline constexpr const char* stages_with_resources[] = {"curate", "rollout", "grpo", "teacher-dump", "distill", "evaluate", "reward-train"};

/// Every key of the system: name, type and default, meaning, unit, range or choices.
const std::vector<config::Key>& schema();

}  // namespace atelier::stage
