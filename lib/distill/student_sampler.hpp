#pragma once

#include <span>
#include <vector>

#include "core/arena.hpp"
#include "core/philox.hpp"
#include "distill/student_spec.hpp"
#include "nn/parameters.hpp"
#include "pipeline/branch.hpp"
#include "pipeline/micro_batch.hpp"

namespace atelier::distill {

/// Trajectories of one prompt: states before and after every step, in the shard's layout with K =
/// N.
struct StudentTrajectory {
    std::vector<float> x, x_next;      ///< [members, N, tokens * channels]
    std::vector<float> log_prob;       ///< [members, N]; NaN where the step is an ODE step
    std::vector<float> latents;        ///< [members, tokens * channels]
    std::vector<RandomKey> noise_key;  ///< [members]
};

/// Draws trajectories of one prompt, or of as many as go into one micro-batch. The prefixes run once a call.
class StudentSampler {
  public:
    static std::size_t prompts_together(const StudentSpec& spec) { return pipeline::prompts_together(spec.micro_batch, spec.members, spec.target); }

    /// Plans its buffers in `arena`; the prompts must outlive it. Throws Error(internal) for more than prompts_together.
    StudentSampler(const dit::Dit& dit, const nn::ParameterStore& weights, std::span<const pipeline::EncodedPrompt* const> prompts,
                   const StudentSpec& spec, Arena& arena);

    /// Of each prompt; everything random follows from the keys [prompts, members].
    std::vector<StudentTrajectory> sample(std::span<const RandomKey> noise_keys);

  private:
    const dit::Dit& dit_;
    const nn::ParameterStore& weights_;
    StudentSpec spec_;
    pipeline::Branch branch_;
    pipeline::MicroBatch batch_;
    dit::TargetPass pass_;
};

}  // namespace atelier::distill
