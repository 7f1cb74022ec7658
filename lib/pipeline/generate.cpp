#include "pipeline/generate.hpp"

#include <memory>

#include "core/numbers.hpp"
#include "flow/sampler.hpp"
#include "pipeline/branch.hpp"

namespace atelier::pipeline {
namespace {

/// Everything that sampling needs in memory, planned once.
struct Buffers {
    Buffers(const dit::Dit& dit, const GenerateRequest& r, Arena& arena)
        : conditional(dit, r.conditional, r.target, dit::Keep::nothing, arena) {
        std::int64_t prefix = conditional.longest();
        if (!r.unconditional.empty()) {
            ATELIER_CHECK(r.unconditional.size() == r.conditional.size(), "{} prompts with {} negative ones", r.conditional.size(), r.unconditional.size());
            unconditional = std::make_unique<Branch>(dit, r.unconditional, r.target, dit::Keep::nothing, arena);
            prefix = std::max(prefix, unconditional->longest());
        }
        pass = std::make_unique<dit::TargetPass>(dit, r.batch(), r.target.tokens(), prefix, dit::Keep::nothing, arena, std::ssize(r.conditional));
        const Shape shape{r.batch(), r.target.tokens(), dit.config().out_channels};
        velocity = arena.take_f32(shape);
        other = arena.take_f32(shape);
    }
    Branch conditional;
    std::unique_ptr<Branch> unconditional;
    std::unique_ptr<dit::TargetPass> pass;
    Tensor velocity, other;
};

}  // namespace

Bytes generation_bytes(const dit::Dit& dit, const GenerateRequest& request) {
    return Workspace::measure([&](Arena& arena) { Buffers(dit, request, arena); });
}

void generate_latents(const dit::Dit& dit, const nn::ParameterStore& weights, const GenerateRequest& r,
                      std::span<float> latents, Workspace& workspace, const StepCallback& callback) {
    const std::int64_t channels = dit.config().out_channels;
    ATELIER_CHECK(static_cast<std::int64_t>(latents.size()) == r.batch() * r.target.tokens() * channels,
                  "latents of {} numbers for {} x {} x {}", latents.size(), r.batch(), r.target.tokens(), channels);
    Buffers buffers = workspace.build([&](Arena& arena) { return Buffers(dit, r, arena); });
    const Tensor x = Tensor::of(latents.data(), {r.batch(), r.target.tokens(), channels});
    std::vector<float> times(static_cast<std::size_t>(r.batch()));
    for (int i = 0; i < r.schedule.steps(); ++i) {
        // The model's time, sigma, by way of the timestep, to the last bit as the pipeline computes it. (Any scheduler that is read has
        // num_train_timesteps = 1000.)
        const float t = r.schedule.timesteps[static_cast<std::size_t>(i)] / 1000.0f;
        std::fill(times.begin(), times.end(), t);
        buffers.conditional.refresh(weights, t);
        buffers.pass->forward(weights, buffers.conditional.prefix(), x, times, buffers.velocity);
        if (buffers.unconditional) {
            buffers.unconditional->refresh(weights, t);
            buffers.pass->forward(weights, buffers.unconditional->prefix(), x, times, buffers.other);
            flow::guide<float>(r.guidance, channels, numbers(buffers.velocity), numbers(buffers.other),
                               numbers(buffers.velocity));
        }
        const auto transition = flow::transition(flow::Sampler::ode, 0.0, r.schedule.sigmas, i);
        flow::step<float>(transition, latents, numbers(buffers.velocity), {}, latents);
        if (callback) callback(i, latents);
    }
}

}  // namespace atelier::pipeline
