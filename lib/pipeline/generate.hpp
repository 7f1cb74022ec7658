#pragma once

#include <functional>
#include <span>
#include <vector>

#include "flow/guidance.hpp"
#include "flow/schedule.hpp"
#include "pipeline/pipeline.hpp"

namespace atelier::pipeline {

struct GenerateRequest {
    std::vector<const EncodedPrompt*> conditional;
    std::vector<const EncodedPrompt*> unconditional;  ///< of the same prompts; empty: no guidance
    flow::Guidance guidance;
    flow::Schedule schedule;
    dit::Grid target;
    std::int64_t pictures = 1;  ///< of each prompt
    std::int64_t batch() const { return static_cast<std::int64_t>(conditional.size()) * pictures; }
};

/// Called after each step with the latents [batch, tokens, channels].
using StepCallback = std::function<void(int step, std::span<const float> latents)>;

/// Euler steps along the schedule from `latents` [batch, tokens, channels] (noise on entry, the pictures' latents on
/// return; a prompt's follow one another), all of them together. The prefix of each branch runs once.
void generate_latents(const dit::Dit& dit, const nn::ParameterStore& weights, const GenerateRequest& request,
                      std::span<float> latents, Workspace& workspace, const StepCallback& callback = {});
/// Bytes that it takes of the workspace.
Bytes generation_bytes(const dit::Dit& dit, const GenerateRequest& request);

}  // namespace atelier::pipeline
