#pragma once

#include "stage/context.hpp"

namespace atelier::stage {

/// What the configuration asks an update to minimise.
rl::ObjectiveConfig objective_of(const config::Config& config);

/// One iteration's policy update from its rollout: the groups are cut into minibatches, each gives
/// one AdamW step on the clipped objective (and KL to the base, if asked for); gradients are summed
/// over ranks in rank order. Publishes policy/ (weights, moving average, optimizer state, manifest)
/// as a whole and puts a line into the run's metrics. Returns the exit code.
int run_grpo(const Context& context);

}  // namespace atelier::stage
