#pragma once

#include "stage/context.hpp"

namespace atelier::stage {

/// How many prompts of each of the policy's tasks an iteration draws. Throws Error(usage) where a task would have none.
std::vector<std::size_t> prompts_of_tasks(const Context& context);

/// The prompts of an iteration, in the order of its groups: drawn without replacement from each
/// task's training prompts, the mixed policy's divided evenly over its tasks. Throws Error(input) where a pool has too few. Collective.
std::vector<Prompt> draw_iteration(const Context& context);

/// One iteration's rollout: each drawn prompt's group is sampled, decoded, scored and published as
/// a shard of its own (rollout/shard-NNNNN.h5); then the index of the shards and the manifest. Any
/// number of ranks writes the same samples. Returns the process's exit code: 0, or requeue after a
/// signal.
int run_rollout(const Context& context);

}  // namespace atelier::stage
