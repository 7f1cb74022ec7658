#pragma once

#include <map>
#include <string>

#include "stage/context.hpp"

namespace atelier::stage {

/// Models by name: transformer component directories.
using Models = std::vector<std::pair<std::string, std::filesystem::path>>;

/// Held-out prompts of every task with fixed seeds, sampled by every model along the ODE with the configuration's guidance, and
/// measured. Publishes eval/: summary.json (means with 95 % bootstrap intervals over prompts, and Elo from pairwise outcomes
/// by total score), contact-<task>.png (same prompts and seeds, one column a model), manifest. Rank 0 prints the table.
/// `limit`: at most so many prompts of a task; 0: all. Returns the exit code.
int run_evaluate(const RunDirectory& run, const config::Config& config, const Models& models, std::int64_t limit,
                 comm::Communicator& world);

}  // namespace atelier::stage
