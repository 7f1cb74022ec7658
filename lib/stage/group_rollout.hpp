#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/device_turn.hpp"
#include "stage/scoring.hpp"
#include "stage/shard_writer.hpp"
#include "stage/stage_memory.hpp"
#include "stage/timeline.hpp"

namespace atelier::stage {

/// Draws groups, has them scored beside the sampling, and publishes one shard a group, so that a
/// killed job loses at most the groups in work. Any number of ranks writes the same samples. What
/// curation and rollout share. What each rank was busy with when stands in the directory's timeline.json.
class GroupRollout {
  public:
    enum class States { kept, left_out };
    /// `spec`: of one size; each group has its own prompt's. `stage`: as it stands in the shards. `transformer`: where the model's policy came from.
    /// `states`: whether the trained steps' states and log-probabilities go into the shards.
    GroupRollout(const Context& context, pipeline::Pipeline& model, const rl::SamplingSpec& spec,
                 const std::string& stage, const std::filesystem::path& transformer,
                 std::filesystem::path directory, States states = States::kept);

    /// Plans and takes the memory for this rank's share of the prompts, and says how much it is.
    void reserve(const PromptSource& prompts, StageMemory& memory);

    enum class End { finished, stopped };
    /// One group for each prompt, in the order given; this rank's share of them. `weights`: by
    /// task. A shard that is there already is checked and left: one of another model, prompt, judge or of other pictures is an Error(input), one
    /// of a version that didn't say is made anew. Stopped by a signal, it publishes
    /// the groups that are drawn first. Throws Error(reward) on every rank as soon as more samples than reward.max_absent allows could not
    /// be scored, without drawing the rest; the shards that lack scores are removed, so that a rerun asks again.
    End run(const PromptSource& prompts,
            const std::map<std::string, CategoryWeights>& weights);

    /// Every dimension of a kind, lowest tier first.
    const std::vector<std::string>& dimensions(const std::string& kind) const {
        return scoring_.dimensions(kind);
    }
    /// Their tiers.
    const Tiers& tiers(const std::string& kind) const { return scoring_.tiers(kind); }
    static std::string shard_name(std::size_t unit);
    const std::string& model_hash() const { return model_hash_; }
    /// What the manifest names as the scorer's inputs.
    const std::map<std::string, io::FileDigest>& scorer_files() const { return scorer_files_; }
    std::int64_t absent() const { return absent_; }  ///< samples without score, over all ranks
    const ShardWriter& writer() const { return writer_; }
    /// Of the shards that this run published, over all ranks; there is one for every group.
    std::map<std::string, io::FileDigest> take_digests() { return std::move(digests_); }

  private:
    struct Pending {
        std::size_t unit = 0;
        Prompt prompt;
        io::TrajectoryShard shard;
        std::vector<std::future<reward::Outcome>> outcomes;
        bool is_scored() const;
    };
    /// What an earlier run of the stage published of a group, without states and pictures.
    std::optional<io::TrajectoryShard> published(std::size_t unit, const Prompt& prompt) const;
    /// How a prompt's group is sampled.
    rl::SamplingSpec spec_of(const Prompt& prompt) const;
    rl::GroupPolicy build(const EncodedPair& pair, const rl::SamplingSpec& spec, Arena& arena) const;
    /// Samples a group, decodes it and hands it over to be scored; nothing if a signal came meanwhile.
    std::optional<Pending> sample(std::size_t unit, Prompt prompt);
    std::optional<Pending> draw(std::size_t unit, Prompt prompt);
    /// The turn of a group on the device; how long it was waited for is in the timeline.
    DeviceTurn turn(std::int64_t group);
    /// Waits for a group's scores and writes its shard.
    void publish(Pending group, const std::map<std::string, CategoryWeights>& weights);
    void write(Pending group, const std::map<std::string, CategoryWeights>& weights);

    const Context& context_;
    pipeline::Pipeline& model_;
    rl::SamplingSpec spec_;
    std::string stage_, config_hash_, model_hash_;
    std::filesystem::path directory_;
    States states_;
    Workspace workspace_{"group"};
    Scoring scoring_;
    std::map<std::string, io::FileDigest> scorer_files_;
    Timeline timeline_;
    std::int64_t absent_ = 0;
    ShardWriter writer_;
    std::map<std::string, io::FileDigest> digests_;
};

/// Everything random of a member follows from (seed, iteration, policy and prompt, member).
std::vector<RandomKey> group_keys(const Context& context, const Prompt& prompt, int members);

/// Columns of a shard that every stage's samples have.
io::TrajectoryPrompts prompt_table(const Context& context, const Prompt& prompt);
/// Throws Error(input) where a shard of one prompt holds another one, or another text, other attributes or pictures than the prompt has now.
void require_same_prompt(const Context& context, const Prompt& prompt, const io::TrajectoryPrompts& stored, const std::filesystem::path& shard);
io::TrajectoryHeader shard_header(const Context& context, const std::string& stage,
                                  const rl::SamplingSpec& spec, const std::string& model_hash);
/// Publishes the index of shards 0 to count - 1, then the manifest that names them all; `digests`:
/// those that are known.
void publish_shards(const std::filesystem::path& directory, std::size_t count,
                    const std::map<std::string, io::FileDigest>& digests, io::Manifest manifest);
/// Decodes `samples.latents` into `samples.picture`. Throws Error(numeric) naming the sample whose latents are no numbers.
void decode_pictures(pipeline::Pipeline& model, io::TrajectorySamples& samples);

}  // namespace atelier::stage
