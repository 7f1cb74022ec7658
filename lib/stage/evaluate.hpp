#pragma once

#include <string>
#include <vector>

#include "stage/evaluation_shards.hpp"

namespace atelier::stage {

/// What a run has made so far: the base (and the base with guidance, where teachers use some),
/// finished teachers and the mixed policy (with their guidance), the last finished student
/// (without). Then further ones, each "NAME=DIRECTORY", without guidance, and those with the teachers' guidance. Throws Error(usage) for a NAME of other
/// characters than letters, digits, - and _, one that stands twice, or one of the run's own (base, base-guided, teacher-<task>, mix, student), finished
/// or not; for a guided one in a run without guidance.
std::vector<Candidate> candidates_of(const Context& context, const std::vector<std::string>& models, const std::vector<std::string>& guided_models = {});

/// Where an evaluation's results stand: eval/ for all held-out prompts and what the run has made, which is what the pipeline waits for; any
/// other has a directory of its own beside it, eval-<further model>...[-limit-<limit>].
std::filesystem::path evaluation_directory(const Context& context, const std::vector<Candidate>& candidates, std::int64_t limit);

/// Whether an evaluation that is complete is the one that is asked for: the same configuration, models, judge, prompts and limit. What else its
/// manifest tells (memory, say) does not count.
bool is_same_evaluation(const io::Manifest& complete, const io::Manifest& asked);

/// Held-out prompts of every task with fixed seeds, sampled by every candidate along the ODE and
/// scored. Publishes in evaluation_directory(): <model>/<task>/shard-*.h5 (pictures, scores, reasons; those of the
/// same weights, prompts and judge are kept, or taken over from eval/, so that a killed evaluation goes on and a further model costs only its
/// own), summary.json (means with 95 % bootstrap intervals over prompts by dimension and category;
/// Elo from pairwise outcomes by total score), contact-<task>.png (same prompts and seeds, one
/// column a model), manifest; rank 0 prints the table. `limit`: at most so many prompts of a task;
/// 0: all. An evaluation of the same models is left alone. Returns the exit code. Throws Error(reward) on every rank as soon as more of all
/// candidates' pictures than reward.max_absent allows could not be scored; the shards that lack scores are removed, so that a rerun asks again.
int run_evaluate(const Context& context, const std::vector<Candidate>& candidates,
                 std::int64_t limit);

}  // namespace atelier::stage
