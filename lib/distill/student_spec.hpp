#pragma once

#include "distill/loss.hpp"
#include "flow/schedule.hpp"
#include "flow/sampler.hpp"
#include "model/dit/layout.hpp"

namespace atelier::distill {

/// How a student's trajectories are sampled: without guidance, with its own sampler at every step.
struct StudentSpec {
    flow::Schedule schedule;
    flow::Sampler sampler = flow::Sampler::ode;
    double eta = 0.7;  ///< of the sampler; of flow_sde's transitions in the kl loss along the ODE
    dit::Grid target;
    int members = 4;      ///< trajectories of a prompt
    int micro_batch = 4;  ///< targets that run together, at most
    int states() const { return members * schedule.steps(); }
    /// Of the kl loss: along the ODE there is no KL of transitions, that of flow_sde's with the same states is taken. Throws Error(usage) for
    /// an eta that the sampler doesn't have.
    flow::Transition loss_transition(int step) const;
    /// Steps that a loss is taken at: for kl those whose standard deviation is above 0. Throws as loss_transition().
    int loss_steps(LossKind kind) const;
};

/// Throws Error(usage) when the sampler or the loss has no meaning with this eta: kl needs a step whose standard deviation is above 0.
void check_student(const StudentSpec& spec, LossKind kind);

}  // namespace atelier::distill
