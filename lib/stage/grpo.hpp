#pragma once

#include "stage/context.hpp"

namespace atelier::stage {

/// One iteration's policy update from its rollout: gradients of the groups, summed over ranks in rank order, clipped; AdamW;
/// weights, optimizer state and manifest published as policy/, a line appended to the run's metrics. Returns the exit code.
int run_grpo(const Context& context);

}  // namespace atelier::stage
