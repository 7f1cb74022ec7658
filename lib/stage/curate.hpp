#pragma once

#include "stage/context.hpp"

namespace atelier::stage {

/// A group of the base policy for each prompt of a task's pool (prompts/<task>/shard-*.h5), which
/// prompts tell members apart and the weights under which each dimension has its share of the
/// advantage (prompts/<task>.h5). Returns the exit code.
int run_curate(const Context& context);

}  // namespace atelier::stage
