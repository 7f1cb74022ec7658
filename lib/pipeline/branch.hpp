#pragma once

#include "pipeline/pipeline.hpp"

namespace atelier::pipeline {

/// A prompt in front of the transformer: its layout and its prefix pass. The conditional and the unconditional prompt of a
/// guided sample are one branch each.
class Branch {
  public:
    /// Plans for this prompt; nothing runs yet.
    Branch(const dit::Dit& dit, const EncodedPrompt& prompt, dit::Grid target, dit::Keep keep, Arena& arena);
    /// Runs the prefix under the present weights (modulated from t = 0 where the condition is causal).
    void run(const nn::ParameterStore& weights, float timestep = 0.0f);
    /// Runs the prefix at a timestep; nothing to do for a causal condition that has run.
    void refresh(const nn::ParameterStore& weights, float timestep);
    dit::PrefixPass& prefix() { return prefix_; }
    const dit::Layout& layout() const { return layout_; }

  private:
    const dit::Dit& dit_;
    const EncodedPrompt& prompt_;
    dit::Layout layout_;
    dit::PrefixPass prefix_;
    bool has_run_ = false;
};

}  // namespace atelier::pipeline
