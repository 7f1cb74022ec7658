#pragma once

#include <span>

#include "model/dit/dit.hpp"

// The parts that prefix and target passes share: modulation, and a run of tokens through one block.
namespace atelier::dit {

/// The timesteps' sinusoids, to where the passes run.
void load_timesteps(std::span<const float> timesteps, ModulationBuffers& m);
void modulation_forward(const Dit& dit, const nn::ParameterStore& weights, ModulationBuffers& m);
void zero_modulation_gradients(ModulationBuffers& m);
/// From m.d_blocks (of the gates past their tanh) and m.d_final to the parameters' gradients.
void modulation_backward(const Dit& dit, const nn::ParameterStore& weights, const nn::ParameterStore& gradients,
                         ModulationBuffers& m);

/// What one run of tokens attends to. Of prefixes: all tokens of all prompts in one group, each prompt's among themselves. Of
/// targets: a group each, as many for every prompt, over their prompt's keys and their own.
struct StreamShape {
    std::int64_t groups = 1, rows = 0;      ///< R = groups * rows tokens
    bool of_targets = false;
    std::span<const PromptRange> prompts;
    const float* cosine = nullptr;          ///< prefixes: [rows, head_dim / 2]; targets: [prompts, rows, head_dim / 2]
    const float* sine = nullptr;
    const std::int32_t* limit = nullptr;    ///< of the prefix's tokens; targets: none
    const std::uint8_t* valid = nullptr;    ///< of the prefix's tokens; null: all
};

/// Where a block lies among the others of a pass.
struct BlockPlace {
    std::int64_t layer = 0;
    bool is_normed = false;                   ///< the block before made this one's first norm
    const BlockActivations* next = nullptr;   ///< of the block whose first norm is made here; null: none's is
    Keep kept = Keep::inputs;                 ///< of an earlier forward pass of the same input: what of its activations is there
};

/// The block's forward: x [R, W] -> y [R, W] (another buffer; empty: the activations alone are wanted), activations into `a`. With `keys_only`
/// it stops after keys and values (a.qkv) and leaves y alone.
void block_forward(const Dit& dit, const nn::ParameterStore& weights, const BlockPlace& place, const StreamShape& shape,
                   const ModulationBuffers& m, const Tensor& x, const Tensor& shared_keys, const BlockActivations& a,
                   const Tensor& attention_workspace, bool keys_only, const Tensor& y);

/// d_x [R, W]: gradient of the block's output on entry, of its input on return. `own_key_gradients` [R, 2W] is added to
/// the gradient of the block's own keys and values (empty: none); `shared_key_gradients` is added to (empty: none).
/// `keys_only` as in the forward: d_x is taken as zero on entry.
void block_backward(const Dit& dit, const nn::ParameterStore& weights, const nn::ParameterStore& gradients,
                    std::int64_t layer, const StreamShape& shape, ModulationBuffers& m, const Tensor& x,
                    const Tensor& shared_keys, const Tensor& shared_key_gradients, const Tensor& own_key_gradients,
                    const BlockActivations& a, StreamBuffers& buffers, bool keys_only);

}  // namespace atelier::dit
