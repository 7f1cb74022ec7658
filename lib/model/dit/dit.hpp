#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "core/arena.hpp"
#include "model/dit/config.hpp"
#include "model/dit/layout.hpp"
#include "nn/checkpoint_weights.hpp"
#include "nn/parameters.hpp"
#include "ops/attention.hpp"
#include "ops/precision.hpp"
#include "ops/repeated.hpp"

namespace atelier::dit {

/// What a pass keeps of its blocks. The backward pass makes the rest again, to the same bits.
enum class Keep : std::uint8_t {
    nothing,      ///< inference
    activations,  ///< everything the backward pass needs
    products,     ///< inputs, attention's output and all products' results: what is made again is elementwise
    branches,     ///< inputs, attention's output, and what attention and MLP add to the residual
    inputs,       ///< block inputs only
};

/// Of the sinusoidal timestep embedding: fixed in the class.
inline constexpr std::int64_t sinusoid_width = 256;

/// Indices of one block's rows in the parameter table.
struct BlockParameters {
    int q = 0, k = 0, v = 0, out = 0, q_norm = 0, k_norm = 0, mlp_value = 0, mlp_gate = 0, mlp_out = 0;
};

/// The transformer of Qwen-Image 2.1: config, parameter table (diffusers' names) and where its rows are.
/// Weights live in a nn::ParameterStore made from `table()`.
class Dit {
  public:
    /// `device`: where its passes run; their weights and gradients must be there. `precision`: of operands of matrix products, attention's
    /// included, where passes run on the CPU; weights must hold bf16 numbers then (nn::round_to). `takes_adapter`: an adapter may lie beside
    /// the weights. What it adds is small, so that results that it is added to stay fp32, with it and, for comparisons, without it.
    explicit Dit(const Config& config, Device device = Device::cpu, ops::ProductPrecision precision = ops::ProductPrecision::fp32,
                 bool takes_adapter = false);
    const Config& config() const { return config_; }
    Device device() const { return device_; }
    ops::ProductPrecision precision() const { return precision_; }
    /// Whether operands are rounded here, and not by a device's backend.
    bool rounds_operands() const { return device_ == Device::cpu && precision_ == ops::ProductPrecision::bf16; }
    /// Of what blocks keep for products and attention alone, as these take it: bf16 on a device whose products round.
    DType operand_dtype() const {
        const bool fits = config_.width() % 8 == 0 && config_.mlp_width() % 8 == 0;  // rows at multiples of 16 bytes
        return fits && nn::keeps_bf16(device_, precision_) ? DType::bf16 : DType::f32;
    }
    /// Of products' results that other operations alone read.
    DType result_dtype() const { return takes_adapter_ ? DType::f32 : operand_dtype(); }
    const nn::ParameterTable& table() const { return table_; }
    const std::vector<BlockParameters>& blocks() const { return blocks_; }

    int time_in = 0, time_out = 0, text_norm = 0, text_in = 0, text_out = 0, image_in = 0, modulation = 0;
    int norm_out = 0, proj_out = 0;

  private:
    Config config_;
    Device device_;
    ops::ProductPrecision precision_;
    bool takes_adapter_;
    nn::ParameterTable table_;
    std::vector<BlockParameters> blocks_;
};

/// Buffers of a run of tokens through all blocks; shapes with R = groups * rows tokens. Internal to the passes.
struct StreamBuffers;
struct StreamShape;

/// Modulation of G timesteps, forward and backward; shared by both passes.
struct ModulationBuffers {
    Tensor sinusoid;                ///< [G, 256]
    Tensor host_sinusoid;           ///< the same in host memory
    Tensor hidden, hidden_act;      ///< [G, W]: linear_1 and its SiLU
    Tensor temb, temb_act;          ///< [G, W]
    Tensor blocks;                  ///< [G, 4W]: scale1, tanh gate1, scale2, tanh gate2
    Tensor final_scale;             ///< [G, W]
    Tensor d_blocks, d_final, d_temb_act, d_temb, d_hidden;  ///< gradients of the same
    void plan(const Dit& dit, std::int64_t groups, bool training, Arena& arena);
};

/// Activations of one block; y1, qkv, attended, y2 and act are Dit::operand_dtype(), the products' results qkv_in, branch1, value_gate and
/// branch2 Dit::result_dtype().
struct BlockActivations {
    Tensor y1, mean1, inv1, qkv_in, qkv, inverse_rms, attended, log_sum_exp, branch1, middle, y2, mean2, inv2, value_gate,
        act, branch2;
};

struct StreamBuffers {
    std::int64_t max_rows = 0, groups = 0;
    std::vector<Tensor> inputs;               ///< of each block and of the final norm: [R, W]
    std::vector<BlockActivations> blocks;     ///< one per layer, which may share what isn't kept, or one for all
    Tensor d_x, d_y, d_qkv, d_act, rope_workspace, attention_workspace;
    Tensor d_branch, d_value_gate;            ///< of Dit::operand_dtype()
    Keep keep = Keep::nothing;
    const BlockActivations& of(std::int64_t layer) const { return blocks[static_cast<std::size_t>(blocks.size() == 1 ? 0 : layer)]; }
    void plan(const Dit& dit, std::int64_t groups, std::int64_t max_rows, std::int64_t max_keys, Keep keep,
              bool final_norm, Arena& arena);
};

/// What a pass reads of a layout, where it runs: on a device copies of the layout's numbers, else the layout's own.
struct PassLayout {
    Tensor cosine, sine;  ///< [tokens, head_dim / 2]
    Tensor source;        ///< i32 [tokens]; prefix passes
    void plan(const Dit& dit, std::int64_t max_tokens, bool prefix, Arena& arena);
    /// Tokens [first, first + count) of the layout's.
    void load(const Dit& dit, const Layout& layout, std::int64_t first, std::int64_t count);

  private:
    Tensor cosine_room_, sine_room_, source_room_;
};

/// The prefixes of a layout's prompts: text and references, run once. Keys and values of every layer serve all target passes of
/// the prompts; their gradients are summed in `key_gradients` and go back through the prefix once.
class PrefixPass {
  public:
    /// Plans for layouts of up to `max_tokens` prefix tokens and `max_encoder_tokens` encoder rows.
    PrefixPass(const Dit& dit, std::int64_t max_tokens, std::int64_t max_encoder_tokens, Keep keep, Arena& arena);

    /// encoder_states [encoder_tokens, context_dim], reference_latents [reference_tokens, in_channels] (may be empty).
    /// `timestep` is 0 for a causal condition. With `outputs` [prefix_tokens, out_channels] the model's output at the
    /// prefix's tokens too (nobody needs it but comparisons); the bits of keys and values are the same. What goes in and comes
    /// out of a pass may lie in host memory wherever the pass runs.
    void forward(const nn::ParameterStore& weights, const Layout& layout, const Tensor& encoder_states,
                 const Tensor& reference_latents, float timestep, const Tensor& outputs = {});

    /// Sets the gradient of keys and values to zero; before the target passes.
    void zero_key_gradients();

    /// After all target backward passes: adds to `gradients`; writes d_encoder_states and d_reference_latents
    /// unless empty. Inputs as given to forward.
    void backward(const nn::ParameterStore& weights, const nn::ParameterStore& gradients, const Tensor& encoder_states,
                  const Tensor& reference_latents, const Tensor& d_encoder_states, const Tensor& d_reference_latents);

    const Layout& layout() const { return *layout_; }
    /// Of the forward pass that made the present keys and values, with the layout as it was then, among all of the process; 0: none has.
    std::uint64_t run_number() const { return run_number_; }
    /// [prefix_tokens, 2 W]: keys, then values, of a layer; Dit::operand_dtype().
    Tensor keys(std::int64_t layer) const;
    Tensor key_gradients(std::int64_t layer) const;

  private:
    const Dit& dit_;
    const Layout* layout_ = nullptr;
    std::uint64_t run_number_ = 0;
    bool full_last_block_ = false;
    ModulationBuffers modulation_;
    StreamBuffers stream_;
    std::vector<Tensor> keys_, key_gradients_;
    Tensor text_normed_, text_inverse_, text_hidden_, text_act_, text_rows_, latent_rows_, d_text_rows_, d_text_act_,
        d_latent_rows_;
    PassLayout layout_there_;
    Tensor states_there_, references_there_, outputs_there_;
};

/// A micro-batch of B targets of L tokens each, every one at its own timestep; B / P of each of the layout's P prompts, a prompt's together.
class TargetPass {
  public:
    /// `max_prefix_tokens`: of one prompt.
    TargetPass(const Dit& dit, std::int64_t batch, std::int64_t max_target_tokens, std::int64_t max_prefix_tokens,
               Keep keep, Arena& arena, std::int64_t prompts = 1);

    /// latents [B, L, in_channels], timesteps B numbers in [0, 1], velocity [B, L, out_channels] (written). B must be the
    /// planned batch: the micro-batch's shape is part of what makes replay exact.
    void forward(const nn::ParameterStore& weights, const PrefixPass& prefix, const Tensor& latents,
                 std::span<const float> timesteps, const Tensor& velocity);

    /// d_velocity [B, L, out_channels]. Adds to `gradients` and to the prefix's key gradients; writes d_latents unless
    /// empty.
    void backward(const nn::ParameterStore& weights, const nn::ParameterStore& gradients, PrefixPass& prefix,
                  const Tensor& latents, const Tensor& d_velocity, const Tensor& d_latents);

  private:
    /// The forward pass with everything where it runs.
    void run(const nn::ParameterStore& weights, const PrefixPass& prefix, const StreamShape& shape, const Tensor& in, const Tensor& out);
    /// A forward pass that comes again with the same addresses, and by what it is known.
    struct Recorded {
        struct Work {
            const void *weights = nullptr, *adapter = nullptr;
            std::uint64_t prefix = 0;
            const void *in = nullptr, *out = nullptr;
            bool operator==(const Work&) const = default;
        } work;
        ops::Repeated graph;
    };
    ops::Repeated& recorded(const nn::ParameterStore& weights, const PrefixPass& prefix, const Tensor& in, const Tensor& out);
    /// What the pass reads of the prefix's layout, where it runs.
    void load_layout(const PrefixPass& prefix);

    const Dit& dit_;
    std::int64_t batch_;
    std::uint64_t loaded_run_ = 0;  ///< PrefixPass::run_number() of what layout_there_ was loaded from
    Recorded recorded_[2];
    ModulationBuffers modulation_;
    StreamBuffers stream_;
    Tensor final_normed_, final_mean_, final_inverse_;
    PassLayout layout_there_;
    Tensor latents_there_, velocity_there_;
};

/// File name of a component's weights, without its ending.
inline constexpr const char* weights_stem = "diffusion_pytorch_model";

/// The weights of a diffusers component directory (diffusion_pytorch_model[.safetensors|.index.json]), headers checked.
io::Safetensors open_weights(const std::filesystem::path& directory);

/// Loads a component directory's weights.
void load(const nn::ParameterStore& weights, const std::filesystem::path& directory);

/// Writes a component directory: config.json as it was in `config_source`, weights in `format`. Returns the names of the files.
std::vector<std::string> save(const nn::ParameterStore& weights, const std::filesystem::path& config_source,
                              const std::filesystem::path& directory, const nn::StorageFormat& format);

}  // namespace atelier::dit
