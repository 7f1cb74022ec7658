#pragma once

#include <string>
#include <vector>

#include "stage/context.hpp"

namespace atelier::stage {

/// A model to compare.
struct Candidate {
    std::string name;
    std::filesystem::path transformer;  ///< component directory
    bool guided = false;                ///< sampled with the configuration's guidance
};

/// What a run has made so far: the base (and the base with guidance, where teachers use some),
/// finished teachers and the mixed policy (with their guidance), the last finished student
/// (without). Then `extra`, each "NAME=DIRECTORY", without guidance.
std::vector<Candidate> candidates_of(const Context& context, const std::vector<std::string>& extra);

/// Held-out prompts of every task with fixed seeds, sampled by every candidate along the ODE and
/// scored. Publishes eval/: summary.json (means with 95 % bootstrap intervals over prompts by
/// dimension and category; Elo from pairwise outcomes by total score), contact-<task>.png (same
/// prompts and seeds, one column a model), manifest; rank 0 prints the table. `limit`: at most so
/// many prompts of a task; 0: all. An evaluation of the same models is left alone. Returns the exit
/// code.
int run_evaluate(const Context& context, const std::vector<Candidate>& candidates,
                 std::int64_t limit);

}  // namespace atelier::stage
