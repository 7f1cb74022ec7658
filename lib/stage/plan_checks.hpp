#pragma once

#include "stage/dag.hpp"

namespace atelier::stage {

/// What every job of a configuration would refuse hours later is refused when it is planned; where a stage has a check of its own, that one is asked.
/// Errors name the key, its value and what was expected.

/// By the configuration alone. Throws Error(usage).
void check_settings(const Context& context);
/// By the files that it names too: the model's directory and weights (their headers), its schedule's steps, the prompt files. Throws Error(usage), and
/// Error(input) for files.
void check_files(const Context& context);
/// By the ranks and devices that jobs ask Slurm for. Not asked where ranks are started by hand. Throws Error(usage).
void check_resources(const Context& context, const std::vector<Job>& jobs);

}  // namespace atelier::stage
