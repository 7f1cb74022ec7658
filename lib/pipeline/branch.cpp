#include "pipeline/branch.hpp"

#include <algorithm>

namespace atelier::pipeline {
namespace {

dit::Layout layout_of(const dit::Dit& dit, std::span<const EncodedPrompt* const> prompts, dit::Grid target) {
    std::vector<dit::Layout> layouts;
    for (const EncodedPrompt* p : prompts) layouts.push_back(dit::make_layout(dit.config(), p->image_slot, p->references, target));
    return layouts.size() == 1 ? std::move(layouts.front()) : dit::join(layouts);
}

}  // namespace

Branch::Branch(const dit::Dit& dit, std::span<const EncodedPrompt* const> prompts, dit::Grid target, dit::Keep keep, Arena& arena)
    : dit_(dit),
      prompts_(prompts.begin(), prompts.end()),
      layout_(layout_of(dit, prompts, target)),
      prefix_(dit, layout_.prefix_tokens(), layout_.encoder_tokens, keep, arena) {
    if (prompts.size() == 1) return;
    states_ = arena.take_f32({layout_.encoder_tokens, dit.config().context_dim});
    if (layout_.reference_tokens > 0) references_ = arena.take_f32({layout_.reference_tokens, dit.config().in_channels});
}

Branch::Branch(const dit::Dit& dit, const EncodedPrompt& prompt, dit::Grid target, dit::Keep keep, Arena& arena)
    : Branch(dit, std::array{&prompt}, target, keep, arena) {}

std::int64_t Branch::longest() const {
    return std::ranges::max_element(layout_.prompts, {}, &dit::PromptRange::tokens)->tokens;
}

Tensor Branch::states() const { return prompts_.size() == 1 ? prompts_[0]->states_tensor(dit_.config().context_dim) : states_; }

Tensor Branch::references() const { return prompts_.size() == 1 ? prompts_[0]->references_tensor(dit_.config().in_channels) : references_; }

void Branch::refresh(const nn::ParameterStore& weights, float timestep) {
    if (dit_.config().causal_condition && has_run_) return;
    const dit::Config& c = dit_.config();
    run(weights, c.causal_condition ? 0.0f : timestep);
}

void Branch::run(const nn::ParameterStore& weights, float timestep) {
    if (prompts_.size() > 1) {
        std::int64_t state = 0, reference = 0;
        for (const EncodedPrompt* p : prompts_) {
            std::ranges::copy(p->states, states_.f32() + state);
            std::ranges::copy(p->reference_latents, references_.f32() + reference);
            state += std::ssize(p->states);
            reference += std::ssize(p->reference_latents);
        }
    }
    prefix_.forward(weights, layout_, states(), references(), timestep);
    has_run_ = true;
}

void Branch::backward(const nn::ParameterStore& weights, const nn::ParameterStore& gradients) {
    prefix_.backward(weights, gradients, states(), references(), {}, {});
}

}  // namespace atelier::pipeline
