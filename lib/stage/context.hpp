#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "comm/communicator.hpp"
#include "config/config.hpp"
#include "io/manifest.hpp"
#include "rl/group_policy.hpp"
#include "stage/prompts.hpp"

namespace atelier::stage {

/// Directories and files of a run.
struct RunDirectory {
    std::filesystem::path root;
    std::filesystem::path config() const { return root / "config.toml"; }
    std::filesystem::path metrics() const { return root / "metrics.jsonl"; }
    std::filesystem::path iteration(const std::string& task, std::int64_t iteration) const;
    std::filesystem::path rollout(const std::string& task, std::int64_t i) const { return iteration(task, i) / "rollout"; }
    std::filesystem::path policy(const std::string& task, std::int64_t i) const { return iteration(task, i) / "policy"; }
};

/// What every stage of a teacher has: run, configuration, task, iteration, ranks.
struct Context {
    RunDirectory run;
    config::Config config;
    std::string task;
    std::int64_t iteration = 1;
    comm::Communicator* world = nullptr;

    std::filesystem::path model() const { return config.text("run.model"); }
    /// The transformer that this iteration starts from: the base's, or the previous iteration's policy, whose manifest must be
    /// complete. Throws Error(input).
    std::filesystem::path starting_policy() const;
    /// The sampling of this iteration, steps drawn.
    rl::SamplingSpec sampling(const pipeline::Pipeline& model) const;
    std::uint64_t seed() const { return static_cast<std::uint64_t>(config.integer("run.seed")); }
    /// This rank's share of `units`: unit u belongs to rank u % size. Results don't depend on whose it is.
    bool is_mine(std::size_t unit) const { return static_cast<int>(unit % static_cast<std::size_t>(world->size())) == world->rank(); }
    io::Manifest new_manifest(const std::string& stage) const;
};

/// Parses `--run DIR --task NAME --iteration I` and reads DIR/config.toml; threads are set. Throws Error(usage).
/// Nothing: the help text was asked for and printed.
std::unique_ptr<Context> make_context(const char* program, int argc, char** argv, comm::Communicator& world);

/// One stage's right to its directory on all ranks: rank 0 holds the lock, temporaries of killed runs are removed. Every rank
/// throws when another job holds it. Gives nothing when the stage is complete already.
std::unique_ptr<io::DirectoryLock> begin_stage(const Context& context, const std::filesystem::path& directory, bool& complete);

/// USR1, TERM and INT ask a stage to publish what is complete and end with the code that means "run me again".
void catch_signals();
/// Whether any rank was asked; the same answer on every rank.
bool stop_was_asked(comm::Communicator& world);

/// The version of the source this was built from.
std::string code_version();

/// One prompt as the transformer takes it, with its negative prompt when guidance is on.
struct EncodedPair {
    pipeline::EncodedPrompt conditional, unconditional;
};
EncodedPair encode_pair(pipeline::Pipeline& model, const Context& context, const Prompt& prompt,
                        const rl::SamplingSpec& spec);

}  // namespace atelier::stage
