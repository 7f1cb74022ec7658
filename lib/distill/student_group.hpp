#pragma once

#include <memory>
#include <span>
#include <vector>

#include "core/arena.hpp"
#include "core/philox.hpp"
#include "distill/loss.hpp"
#include "flow/guidance.hpp"
#include "flow/schedule.hpp"
#include "nn/parameters.hpp"
#include "pipeline/branch.hpp"
#include "pipeline/micro_batch.hpp"

namespace atelier::distill {

/// How a student's trajectories are sampled: without guidance, with its own sampler at every step.
struct StudentSpec {
    flow::Schedule schedule;
    flow::Sampler sampler = flow::Sampler::ode;
    double eta = 0.7;  ///< of the sampler; of flow_sde's transitions in the kl loss along the ODE
    dit::Grid target;
    int members = 4;      ///< trajectories of a prompt
    int micro_batch = 4;  ///< run together; divides members
};

/// Trajectories of one prompt: states before and after every step, in the shard's layout with K =
/// N.
struct StudentTrajectory {
    std::vector<float> x, x_next;      ///< [members, N, tokens * channels]
    std::vector<float> log_prob;       ///< [members, N]; NaN where the step is an ODE step
    std::vector<float> latents;        ///< [members, tokens * channels]
    std::vector<RandomKey> noise_key;  ///< [members]
};

/// Sum over (member, step) of the loss, and how many terms it has.
struct DistillStats {
    double loss = 0, terms = 0;
};

/// One prompt's trajectories under one set of weights: the student's to sample and to train, a
/// teacher's to record velocities. The prefix runs once per call; in training its gradient goes
/// back through it once.
class StudentGroup {
  public:
    /// Plans its buffers in `arena`. `keep`: nothing for sampling and recording, else training.
    /// `unconditional`: the negative prompt of a guided teacher; null: no guidance. Throws
    /// Error(usage) when members is no multiple of micro_batch.
    StudentGroup(const dit::Dit& dit, const nn::ParameterStore& weights,
                 const pipeline::EncodedPrompt& conditional,
                 const pipeline::EncodedPrompt* unconditional, const StudentSpec& spec,
                 dit::Keep keep, Arena& arena);

    /// Everything random follows from the keys.
    StudentTrajectory sample(std::span<const RandomKey> noise_keys);

    /// Guided velocities [members, N, tokens * channels] at stored states of the same shape.
    std::vector<float> velocities(const flow::Guidance& guidance, std::span<const float> x);

    /// Adds the gradient of `weight` times the sum over members and steps of the loss to
    /// `gradients`.
    DistillStats train(LossKind kind, std::span<const float> x,
                       std::span<const float> teacher_velocity, double weight,
                       const nn::ParameterStore& gradients);

  private:
    void run_prefixes();
    /// Conditional velocities of the micro-batch at a step.
    void evaluate(int step);

    const dit::Dit& dit_;
    const nn::ParameterStore& weights_;
    const pipeline::EncodedPrompt& conditional_prompt_;
    StudentSpec spec_;
    dit::Keep keep_;
    pipeline::Branch conditional_;
    std::unique_ptr<pipeline::Branch> unconditional_;
    std::unique_ptr<dit::TargetPass> pass_;
    pipeline::MicroBatch batch_;
    Tensor u_, d_v_;  ///< of the micro-batch's shape
};

}  // namespace atelier::distill
