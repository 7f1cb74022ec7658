#pragma once

#include <memory>
#include <span>
#include <vector>

#include "core/arena.hpp"
#include "distill/loss.hpp"
#include "distill/student_spec.hpp"
#include "flow/guidance.hpp"
#include "nn/parameters.hpp"
#include "pipeline/branch.hpp"
#include "pipeline/micro_batch.hpp"

namespace atelier::distill {

/// Sum over (member, step) of the loss, and how many terms it has.
struct DistillStats {
    double loss = 0, terms = 0;
};

/// Stored states of one prompt's trajectories under one set of weights: a teacher's to record velocities, the student's to
/// train. Members and steps run together, each target at its own step's time. The prefix runs once per call; in training its
/// gradient goes back through it once.
class StudentStates {
  public:
    /// Plans its buffers in `arena`. `keep`: nothing for recording, else training. `unconditional`: the negative prompt of a
    /// guided teacher; null: no guidance. Targets that run together: the largest divisor of the states' number and the micro-batch.
    StudentStates(const dit::Dit& dit, const nn::ParameterStore& weights, const pipeline::EncodedPrompt& conditional,
                  const pipeline::EncodedPrompt* unconditional, const StudentSpec& spec, dit::Keep keep, Arena& arena);

    /// Guided velocities [members, N, tokens * channels] at stored states of the same shape.
    std::vector<float> velocities(const flow::Guidance& guidance, std::span<const float> x);

    /// Adds the gradient of `weight` times the sum over members and steps of the loss to
    /// `gradients`.
    DistillStats train(LossKind kind, std::span<const float> x, std::span<const float> teacher_velocity, double weight,
                       const nn::ParameterStore& gradients);

  private:
    void run_prefixes();
    /// Loads the states from `first` on and computes their conditional velocities. Returns their times.
    std::span<const float> evaluate(std::span<const float> x, std::int64_t first);

    const dit::Dit& dit_;
    const nn::ParameterStore& weights_;
    StudentSpec spec_;
    dit::Keep keep_;
    pipeline::Branch conditional_;
    std::unique_ptr<pipeline::Branch> unconditional_;
    pipeline::MicroBatch batch_;
    std::unique_ptr<dit::TargetPass> pass_;
    Tensor u_, d_v_;  ///< of the micro-batch's shape
};

}  // namespace atelier::distill
