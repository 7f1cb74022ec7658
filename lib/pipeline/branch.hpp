#pragma once

#include <span>

#include "pipeline/pipeline.hpp"

namespace atelier::pipeline {

/// Prompts in front of the transformer: their layout and their prefix pass. The conditional and the unconditional prompts of
/// guided samples are one branch each.
class Branch {
  public:
    /// Plans for these prompts, which must outlive it; nothing runs yet. All have targets on one grid.
    Branch(const dit::Dit& dit, std::span<const EncodedPrompt* const> prompts, dit::Grid target, dit::Keep keep, Arena& arena);
    Branch(const dit::Dit& dit, const EncodedPrompt& prompt, dit::Grid target, dit::Keep keep, Arena& arena);
    /// Runs the prefix under the present weights (modulated from t = 0 where the condition is causal).
    void run(const nn::ParameterStore& weights, float timestep = 0.0f);
    /// Runs the prefix at a timestep; nothing to do for a causal condition that has run.
    void refresh(const nn::ParameterStore& weights, float timestep);
    /// After the target passes' backward: adds the prefix's part to `gradients`.
    void backward(const nn::ParameterStore& weights, const nn::ParameterStore& gradients);
    dit::PrefixPass& prefix() { return prefix_; }
    const dit::Layout& layout() const { return layout_; }
    /// Prefix tokens of the prompt that has most.
    std::int64_t longest() const;

  private:
    const dit::Dit& dit_;
    std::vector<const EncodedPrompt*> prompts_;
    dit::Layout layout_;
    dit::PrefixPass prefix_;
    Tensor states_, references_;  ///< of several prompts, one after another
    bool has_run_ = false;
    /// What the prefix pass takes: the prompt's own, or those of several.
    Tensor states() const;
    Tensor references() const;
};

}  // namespace atelier::pipeline
