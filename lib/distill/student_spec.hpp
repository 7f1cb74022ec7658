#pragma once

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
};

}  // namespace atelier::distill
