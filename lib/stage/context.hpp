#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.hpp"
#include "config/config.hpp"
#include "io/manifest.hpp"
#include "rl/group_policy.hpp"
#include "stage/completeness.hpp"
#include "stage/prompts.hpp"

namespace atelier::reward {
class JudgeRanks;
}

namespace atelier::stage {

/// The policy that is trained on all tasks at once (the baseline); every other policy is the
/// teacher of the task it is named for.
inline constexpr const char* mix_policy = "mix";

/// Directories and files of a run (README.md).
struct RunDirectory {
    std::filesystem::path root;
    std::filesystem::path config() const { return root / "config.toml"; }
    std::filesystem::path metrics() const { return root / "metrics.jsonl"; }
    std::filesystem::path curated(const std::string& task) const {
        return root / "prompts" / (task + ".h5");
    }
    std::filesystem::path curation(const std::string& task) const {
        return root / "prompts" / task;
    }
    std::filesystem::path iteration(const std::string& policy, std::int64_t iteration) const;
    std::filesystem::path rollout(const std::string& policy, std::int64_t i) const {
        return iteration(policy, i) / "rollout";
    }
    std::filesystem::path policy(const std::string& policy, std::int64_t i) const {
        return iteration(policy, i) / "policy";
    }
    std::filesystem::path round(std::int64_t round) const;
    std::filesystem::path dump(std::int64_t r, const std::string& task) const {
        return round(r) / ("teacher-" + task);
    }
    std::filesystem::path student(std::int64_t r) const { return round(r) / "student"; }
    std::filesystem::path evaluation() const { return root / "eval"; }
    std::filesystem::path report() const { return root / "report"; }
    std::filesystem::path tensorboard() const { return root / "tb"; }
    std::filesystem::path judge() const { return root / "judge"; }
    std::filesystem::path judge_training() const { return root / "judge-training"; }
};

/// What every stage has: run, configuration, ranks; and which policy and iteration (or round) it
/// works on, where it has one.
struct Context {
    RunDirectory run;
    config::Config config;
    comm::Communicator* world = nullptr;
    std::string policy;
    std::int64_t iteration = 1;  ///< of the policy, or round of the distillation
    reward::JudgeRanks* judges = nullptr;  ///< ranks that score ([reward] ranks); null: this rank's own threads do

    std::filesystem::path model() const { return config.text("run.model"); }
    std::filesystem::path base_transformer() const { return model() / "transformer"; }
    /// Tasks whose prompts the policy is trained on.
    std::vector<std::string> tasks() const;
    const std::string& kind(const std::string& task) const {
        return config.text("task." + task + ".kind");
    }
    /// Iterations and learning rate of a policy: its own, or grpo's.
    std::int64_t iterations(const std::string& policy) const;
    double learning_rate() const;

    /// The transformer that this iteration starts from: the base's, or the previous iteration's
    /// policy, of which `reads` is compared with its hashes. Collective.
    std::filesystem::path starting_policy(Reads reads) const;
    /// What a policy is after its last iteration: its weights, or their moving average.
    std::filesystem::path final_directory(const std::string& policy) const;
    /// The same, complete and compared with its hashes. Collective.
    std::filesystem::path final_policy(const std::string& policy) const;

    const std::string& negative(const std::string& task) const {
        return config.text("task." + task + ".negative");
    }
    /// How groups of this iteration are sampled, steps drawn: of sampling.height x sampling.width. One draw serves all sizes
    /// (picture_sizes.hpp).
    rl::SamplingSpec sampling(const flow::ScheduleConfig& schedule) const;
    rl::SamplingSpec sampling(const pipeline::Pipeline& model) const { return sampling(model.schedule_config()); }
    std::uint64_t seed() const { return static_cast<std::uint64_t>(config.integer("run.seed")); }
    /// This rank's share of `units`: unit u belongs to rank u % size. Results don't depend on whose
    /// it is.
    bool is_mine(std::size_t unit) const {
        return static_cast<int>(unit % static_cast<std::size_t>(world->size())) == world->rank();
    }
    io::Manifest new_manifest(const std::string& stage) const;
    /// The adapter that is trained, of a policy or by the keys that begin so; rank 0: all weights are.
    nn::LoraConfig lora(const std::string& keys = "lora.") const;
    /// Where the models run ([compute] device).
    Device device() const { return config.text("compute.device") == "cuda" ? Device::cuda : Device::cpu; }
    /// Where the engine's own judge runs ([compute] judge).
    Device judge_device() const { return config.text("compute.judge") == "host" ? Device::cpu : device(); }
    /// Whether AdamW's memory stays in host memory while the model is on a device ([compute] optimizer).
    bool keeps_state_on_host() const { return config.text("compute.optimizer") == "host"; }
    /// Of the transformer's products. Throws Error(usage) where policies would be stored in more digits than they compute with (on CPUs: a
    /// device keeps a rounded copy beside the weights).
    ops::ProductPrecision product_precision() const;
    /// Where the models lie and how they compute ([compute]).
    pipeline::Placement placement() const;
    /// The same where they are trained; `ranks`: that the transformer is cut over (null: it isn't).
    pipeline::Placement training_placement(comm::Communicator* ranks) const;
    /// What a training pass keeps of its blocks with this value of compute.recompute, and with the configured one.
    dit::Keep keep(const std::string& recompute) const;
    dit::Keep keep() const { return keep(config.text("compute.recompute")); }
    /// How policies and students are stored ([checkpoint]).
    nn::StorageFormat storage(const nn::ParameterTable& table) const;
};

/// With [lora]: gives the model the adapter that is trained, a new one where it has none yet. Throws Error(input) when the policy's
/// adapter is not the configuration's.
void prepare_adapter(const Context& context, pipeline::Pipeline& model);

/// One stage's right to its directory on all ranks: rank 0 holds the lock, temporaries of killed
/// runs are removed. Every rank throws when another job holds it.
struct StageLock {
    std::unique_ptr<io::DirectoryLock> lock;  ///< rank 0's
    bool is_complete =
        false;  ///< `product` is there and matches its manifest; the same on every rank
};
/// `lock_at`: the directory that is locked; `product`: the directory whose manifest says that the
/// stage is done.
StageLock begin_stage(const Context& context, const std::filesystem::path& lock_at,
                      const std::filesystem::path& product);

/// Whether a signal asked any rank to publish what is complete and to end with the code that means
/// "run me again"; the same answer on every rank.
bool stop_was_asked(comm::Communicator& world);
/// The same between two passes of an update, which may take minutes. Ranks that make the same passes agree (collective); each of the others
/// asks itself, and all of them agree when they have made theirs.
bool stops_between_passes(comm::Communicator& world, bool passes_are_collective);

/// The version of the source this was built from.
std::string code_version();

/// One prompt as the transformer takes it, with its negative prompt when guidance is on.
struct EncodedPair {
    pipeline::EncodedPrompt conditional, unconditional;
    /// Whether its pictures have the other's sizes: what runs together is planned as so many of the longest of one size.
    bool has_sizes_of(const EncodedPair& other) const { return conditional.references == other.conditional.references; }
};
/// A prompt's pictures at the sizes in which the models see them; null without pictures.
std::shared_ptr<const pipeline::ReferenceInputs> prepare_references(const pipeline::Pipeline& model,
                                                                    const Context& context,
                                                                    const Prompt& prompt);
EncodedPair encode_pair(pipeline::Pipeline& model, const Context& context, const Prompt& prompt,
                        bool with_negative);

/// Prompts of some tasks, by what shards say of them.
class PromptIndex {
  public:
    PromptIndex(const Context& context, const std::vector<std::string>& tasks);
    /// Throws Error(input) naming the shard when the task's prompt file has no such prompt.
    const Prompt& at(const std::string& task, const std::string& id,
                     const std::filesystem::path& shard) const;

  private:
    std::map<std::string, PromptPool> pools_;                                         ///< by task
    mutable std::map<std::pair<std::string, std::string>, Prompt> prompts_;  ///< that were asked for
};

/// Prompts of a task to train on: those that curation kept, or the whole pool where curation is
/// off. Throws Error(input) when the curated file is missing, or was made from another pool.
PromptPool training_prompts(const Context& context, const std::string& task);

}  // namespace atelier::stage
