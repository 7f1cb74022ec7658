#pragma once

#include <string>
#include <vector>

#include "stage/evaluation_report.hpp"
#include "stage/group_rollout.hpp"

namespace atelier::stage {

/// A model to compare.
struct Candidate {
    std::string name;
    std::filesystem::path transformer;  ///< component directory
    bool guided = false;                ///< sampled with the configuration's guidance
    bool further = false;               ///< named by the user, beside what the run has made
};

/// Held-out prompts of a shard. Small, so that a killed evaluation loses little and many ranks
/// share few prompts.
inline constexpr std::size_t evaluation_shard_prompts = 8;

inline std::size_t evaluation_shard_count(const EvaluatedTask& task) {
    return (task.prompts.size() + evaluation_shard_prompts - 1) / evaluation_shard_prompts;
}

/// inputs_hash of every shard of a task: `scorer`, and its prompts with their pictures, of which each rank reads some. Collective.
std::vector<std::string> evaluation_inputs(const Context& context, const EvaluatedTask& task, const std::map<std::string, io::FileDigest>& scorer);

/// A shard to be made, and what from.
struct EvaluationUnit {
    std::size_t unit = 0;
    std::string candidate;
    bool guided = false;
    std::string model_hash, inputs_hash;
};
/// Whether the shard is in `directory` (of one model and task), as it would be made: of the same configuration, weights, prompts with
/// their pictures and sizes, and judge. What else stands under its name is removed.
bool has_evaluation_shard(const Context& context, const std::filesystem::path& directory, const EvaluatedTask& task, const EvaluationUnit& unit);
/// The same shard of another evaluation's directory, where it is there, gets a second name in this one. Whether it did: a file system without
/// hard links gives none, and the shard is to be made, as one that lacks scores is.
bool adopt_evaluation_shard(const Context& context, const std::filesystem::path& from, const std::filesystem::path& directory,
                            const EvaluatedTask& task, const EvaluationUnit& unit);

/// A shard whose pictures are being scored.
struct EvaluationShard {
    std::filesystem::path path;
    std::string candidate;
    io::TrajectoryShard shard;
    std::vector<std::vector<std::future<reward::Outcome>>> outcomes;  ///< of each shape
};
/// Draws one shard and hands it over to be scored: the pictures of its prompts with fixed seeds
/// along the ODE, each of its prompt's size. `context.policy` is the task.
EvaluationShard draw_evaluation_shard(const Context& context, pipeline::Pipeline& model,
                                      const rl::SamplingSpec& spec, const EvaluatedTask& task,
                                      const EvaluationUnit& unit, const std::filesystem::path& directory,
                                      Scoring& scoring, Workspace& workspace);
/// Waits for its scores and publishes it. How many of its pictures could not be scored: they have status reward_absent, and the reason.
std::int64_t publish_evaluation_shard(EvaluationShard shard);
/// The same of a shard that is published.
std::int64_t pictures_without_score(const std::filesystem::path& shard);

/// All samples of one model and task in prompt order; pictures of the prompts `shown` alone.
std::vector<EvaluatedSample> read_evaluation(const Context& context,
                                             const std::filesystem::path& directory,
                                             const EvaluatedTask& task,
                                             const std::vector<std::size_t>& shown);

}  // namespace atelier::stage
