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
/// What an evaluation needs to know of a shard when all are there.
struct ShardScores {
    std::vector<std::uint64_t> sample;  ///< as EvaluatedTask numbers them
    std::map<std::string, io::RewardColumn> reward, truth;
    std::int64_t absent = 0;  ///< pictures that could not be scored
    io::FileDigest digest;
};
/// Of the shard that is in `directory` (of one model and task), if it is as it would be made: of the same configuration, weights, prompts with
/// their pictures and sizes, and judge. What else stands under its name is removed.
std::optional<ShardScores> find_evaluation_shard(const Context& context, const std::filesystem::path& directory, const EvaluatedTask& task,
                                                 const EvaluationUnit& unit);
/// The same shard of another evaluation's directory, where it is there, gets a second name in this one. Nothing if it didn't: a file system
/// without hard links gives none, and the shard is to be made, as one that lacks scores is.
std::optional<ShardScores> adopt_evaluation_shard(const Context& context, const std::filesystem::path& from, const std::filesystem::path& directory,
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
/// Waits for its scores and publishes it. Pictures that could not be scored have status reward_absent, and the reason.
ShardScores publish_evaluation_shard(EvaluationShard shard);

/// All ranks' shards, by their names below the evaluation's directory. Collective.
std::map<std::string, ShardScores> gather_scores(comm::Communicator& world, const std::map<std::string, ShardScores>& mine);

/// Puts a shard's scores where its samples belong.
void take_scores(const ShardScores& shard, std::vector<EvaluatedSample>& samples);
/// Reads the first pictures of the prompts `shown` of one model and task.
void read_pictures(const Context& context, const std::filesystem::path& directory, const EvaluatedTask& task, const std::vector<std::size_t>& shown,
                   std::vector<EvaluatedSample>& samples);

}  // namespace atelier::stage
