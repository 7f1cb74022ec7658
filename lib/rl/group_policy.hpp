#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/arena.hpp"
#include "core/philox.hpp"
#include "flow/guidance.hpp"
#include "flow/sampler.hpp"
#include "flow/schedule.hpp"
#include "nn/parameters.hpp"
#include "pipeline/branch.hpp"
#include "pipeline/micro_batch.hpp"
#include "rl/objective.hpp"

namespace atelier::rl {

/// How trajectories of an iteration are sampled and which of their steps are trained.
struct SamplingSpec {
    flow::Schedule schedule;
    flow::Sampler sampler = flow::Sampler::flow_sde;
    double eta = 0.7;
    flow::LogProb log_prob = flow::LogProb::mean;
    std::vector<int> trained_steps;  ///< rising; these are SDE, the others ODE
    flow::Guidance guidance;
    flow::GuidanceTrain guidance_train = flow::GuidanceTrain::conditional;
    dit::Grid target;
    int members = 8;      ///< of the group
    int micro_batch = 8;  ///< members run together; divides `members`; part of what makes replay exact
    /// All members start from the first one's initial noise (DanceGRPO): what tells them apart is then the noise of the trained
    /// steps alone, which is what the policy gradient can credit.
    bool shared_noise = false;
    bool uses_guidance() const {
        return guidance_train != flow::GuidanceTrain::none && !guidance.is_off();
    }
    /// Whether replay and training run the unconditional branch, too.
    bool trains_both_branches() const { return uses_guidance() && guidance_train == flow::GuidanceTrain::guided; }
};

/// Throws Error(usage) where a group cannot be cut into such micro-batches.
void check_sampling(const SamplingSpec& spec);
/// Throws Error(usage) where what is sampled so cannot be trained on with this objective: GRPO-Guard's ratio where the sampled mean is not that of the
/// trained policy (guidance_train = conditional under guidance) or the log-probability no mean; a KL term without weight, or the reverse.
void check_objective(const ObjectiveConfig& objective, const SamplingSpec& spec);

/// What a group left behind: states before and after each trained step and the log-probability of the policy that is
/// trained, in the shard's layout.
struct GroupTrajectory {
    std::vector<float> x, x_next;   ///< [members, K, tokens * channels]
    std::vector<float> log_prob;    ///< [members, K]
    std::vector<float> log_prob_guided;  ///< the same of the guided velocity that drew it; empty where that is what is trained
    std::vector<float> latents;     ///< [members, tokens * channels]
    std::vector<RandomKey> noise_key;  ///< [members]
};

/// Sampling, replaying and training one prompt's group with one engine: all three run the same kernels on the same
/// micro-batches, so that replaying a trajectory gives the stored log-probability bit for bit.
///
/// The prefix of the prompt (and of the negative prompt) runs once per change of the weights and serves all members, all
/// steps and all trained timesteps, backward included.
class GroupPolicy {
  public:
    /// Plans its buffers in `arena`. `keep`: nothing for sampling and replay, else training. `unconditional` may be null where no guidance is used, and,
    /// if nothing is sampled, where one branch is trained. Throws Error(usage) when members is no multiple of micro_batch.
    GroupPolicy(const dit::Dit& dit, const nn::ParameterStore& weights, const pipeline::EncodedPrompt& conditional,
                const pipeline::EncodedPrompt* unconditional, const SamplingSpec& spec, dit::Keep keep, Arena& arena);

    /// Draws the group; everything random follows from the keys.
    GroupTrajectory sample(std::span<const RandomKey> noise_keys);
    /// The same, or nothing if `is_stopped` says so before one of the steps.
    std::optional<GroupTrajectory> sample(std::span<const RandomKey> noise_keys, const std::function<bool()>& is_stopped);

    /// Log-probabilities [members, K] of a stored trajectory under the present weights.
    std::vector<float> replay(const GroupTrajectory& trajectory);

    /// Velocities [members, K, tokens * channels] at a stored trajectory's states under the present weights, of the branch that
    /// is trained: what KL terms are measured against.
    std::vector<float> velocities(const GroupTrajectory& trajectory);

    /// Adds the gradient of `weight` times the sum over members and trained steps of the clipped surrogate, and of the KL term if
    /// the objective has one, to `gradients`. Without a KL term members whose advantage is 0 add nothing. `base_velocity`: the
    /// base policy's velocities(), needed by KL terms. Throws Error(usage) as check_objective() does.
    ObjectiveStats train(const ObjectiveConfig& objective, const GroupTrajectory& trajectory, std::span<const double> advantage, double weight,
                         const nn::ParameterStore& gradients, std::span<const float> base_velocity = {});

  private:
    flow::Transition transition(int step) const;
    std::int64_t trained_count() const { return static_cast<std::int64_t>(spec_.trained_steps.size()); }
    /// Velocities of the micro-batch at a step: conditional in its v, the sampler's in guided_ (the same memory without guidance).
    void evaluate(int step, bool needs_guidance);
    /// The velocity whose log-probability is trained, of one of the micro-batch.
    Tensor trained_velocity(std::int64_t b) const;
    void run_prefixes();

    const dit::Dit& dit_;
    const nn::ParameterStore& weights_;
    SamplingSpec spec_;
    dit::Keep keep_;
    pipeline::Branch conditional_;
    std::unique_ptr<pipeline::Branch> unconditional_;
    std::unique_ptr<dit::TargetPass> conditional_pass_, unconditional_pass_;
    pipeline::MicroBatch batch_;
    // Where the model runs: of the micro-batch's shape, and one member's base velocity.
    Tensor u_, guided_, d_v_, d_u_, d_guided_, base_;
};

}  // namespace atelier::rl
