#pragma once

#include "stage/context.hpp"

namespace atelier::stage {

/// One iteration's rollout: for each drawn prompt a group is sampled, decoded, measured and published as a shard of its own
/// (rollout/shard-NNNNN.h5), so that a killed job loses at most the groups in work; the manifest comes last. Any number of
/// ranks writes the same samples. Returns the process's exit code: 0, or requeue after a signal.
int run_rollout(const Context& context);

}  // namespace atelier::stage
