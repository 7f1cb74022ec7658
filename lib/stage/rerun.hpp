#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "stage/dag.hpp"

namespace atelier::stage {

/// What is removed before the named jobs, and all that come after them, are made again: their outputs, complete or not, and the states that they kept
/// while they ran. Those that are there, relative to the run, dependents first. Throws Error(usage) for a name that no job has, and where a job
/// needs what was given up ([storage] keep, states) of one that would stay: the message says what, and with which names it can be done.
std::vector<std::filesystem::path> outputs_made_again(const RunDirectory& run, const std::vector<Job>& jobs, const std::vector<std::string>& names);

/// Throws Error(usage) unless every complete job was made from the weights that it would be made from now (those of other iterations, since a policy
/// has more of them than it had; weights that were made again), or is made again with the named jobs: the message says with which names it can be
/// done. An evaluation also has all models that it would have now. Weights that are not there, and were not others before, are made again as they
/// were. By what manifests say: no weight is read.
void require_current(const Context& context, const std::vector<Job>& jobs, const std::vector<std::string>& names);

}  // namespace atelier::stage
