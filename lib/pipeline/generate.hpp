#pragma once

#include <functional>
#include <span>
#include <vector>

#include "flow/guidance.hpp"
#include "flow/schedule.hpp"
#include "pipeline/pipeline.hpp"

namespace atelier::pipeline {

struct GenerateRequest {
    const EncodedPrompt* conditional = nullptr;
    const EncodedPrompt* unconditional = nullptr;  ///< null: no guidance
    flow::Guidance guidance;
    flow::Schedule schedule;
    dit::Grid target;
    std::int64_t batch = 1;
};

/// Called after each step with the latents [batch, tokens, channels].
using StepCallback = std::function<void(int step, std::span<const float> latents)>;

/// Euler steps along the schedule from `latents` [batch, tokens, channels] (noise on entry, the picture's latents on
/// return). The prefix of each branch runs once.
void generate_latents(const dit::Dit& dit, const nn::ParameterStore& weights, const GenerateRequest& request,
                      std::span<float> latents, Workspace& workspace, const StepCallback& callback = {});
/// Bytes that it takes of the workspace.
Bytes generation_bytes(const dit::Dit& dit, const GenerateRequest& request);

}  // namespace atelier::pipeline
