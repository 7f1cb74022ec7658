#include "pipeline/branch.hpp"

namespace atelier::pipeline {

Branch::Branch(const dit::Dit& dit, const EncodedPrompt& prompt, dit::Grid target,
               dit::Keep keep, Arena& arena)
    : dit_(dit),
      prompt_(prompt),
      layout_(dit::make_layout(dit.config(), prompt.image_slot, prompt.references, target)),
      prefix_(dit, layout_.prefix_tokens(), prompt.tokens, keep, arena) {}

void Branch::refresh(const nn::ParameterStore& weights, float timestep) {
    if (dit_.config().causal_condition && has_run_) return;
    const dit::Config& c = dit_.config();
    run(weights, c.causal_condition ? 0.0f : timestep);
}

void Branch::run(const nn::ParameterStore& weights, float timestep) {
    const dit::Config& c = dit_.config();
    prefix_.forward(weights, layout_, prompt_.states_tensor(c.context_dim), prompt_.references_tensor(c.in_channels), timestep);
    has_run_ = true;
}

}  // namespace atelier::pipeline
