#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "core/arena.hpp"
#include "model/vlm/config.hpp"
#include "nn/frozen.hpp"
#include "nn/parameters.hpp"
#include "nn/partition.hpp"
#include "nn/streamed.hpp"
#include "ops/precision.hpp"

namespace atelier::vlm {

/// A linear map's rows in the table: weight and bias (-1: none).
struct Affine {
    int weight = -1, bias = -1;
};
struct TextLayer {
    int input_norm, q, k, v, out, q_norm, k_norm, post_norm, gate, up, down;
};
struct VisionBlock {
    Affine norm1, norm2, qkv, proj, fc1, fc2;
};
struct Merger {
    Affine norm, fc1, fc2;
};

/// Qwen3-VL: config and parameter table under transformers' names.
class Vlm {
  public:
    /// `device`: where its sessions and passes run, weights must be there. `precision`: of a device's products (the backend rounds); on CPUs they
    /// are in fp32.
    explicit Vlm(const Config& config, Device device = Device::cpu, ops::ProductPrecision precision = ops::ProductPrecision::fp32);
    const Config& config() const { return config_; }
    Device device() const { return device_; }
    ops::ProductPrecision precision() const { return precision_; }
    /// Blocks of the table that encoding passes through: vision blocks, then text layers.
    int encoding_blocks() const { return static_cast<int>(config_.vision.depth + config_.text.layers); }
    const nn::ParameterTable& table() const { return table_; }

    int embedding = 0, final_norm = 0, head = 0;  ///< head == embedding when tied
    int position_embedding = 0;
    Affine patch;
    std::vector<TextLayer> layers;
    std::vector<VisionBlock> blocks;
    Merger merger;
    std::vector<Merger> deepstack_mergers;

  private:
    Config config_;
    Device device_;
    ops::ProductPrecision precision_;
    nn::ParameterTable table_;
};

/// File name of a transformers directory's weights, without its ending.
inline constexpr const char* weights_stem = "model";

/// The weights of a transformers directory (model.safetensors or its index), headers checked.
io::Safetensors open_weights(const std::filesystem::path& directory);

/// Loads a transformers directory. A tied head may be stored or not. On a device products take a rounded
/// copy that is kept beside weights in a flat vector (ops/backend.hpp).
void load(const Vlm& vlm, const nn::ParameterStore& weights, const std::filesystem::path& directory);
void load(const Vlm& vlm, const nn::FrozenWeights& weights, const std::filesystem::path& directory);
void load(const Vlm& vlm, nn::StreamedWeights& weights, const std::filesystem::path& directory);
/// A rank's shard of them (nn/sharded.hpp).
void load_shard(const Vlm& vlm, const nn::Partition& partition, int rank, const std::filesystem::path& directory, const Tensor& shard);

/// Positions of a sequence's tokens on the axes t, h, w, and where the next token stands.
struct Positions {
    std::vector<std::array<std::int64_t, 3>> token;
    std::int64_t next = 0;
    /// next - length: what decoding adds to the token index (transformers' rope_deltas).
    std::int64_t rope_delta() const { return next - static_cast<std::int64_t>(token.size()); }
};
/// Throws Error(input) when image tokens and grids disagree.
Positions make_positions(const Config& config, std::span<const std::int32_t> ids, std::span<const GridThw> grids);

/// Sees intermediate values by name ("vision.block.0", "text.layer.1", …), where the session runs: for comparisons.
using Observer = std::function<void(const std::string& name, const Tensor& value)>;

/// Buffers for prompts of up to `max_tokens` tokens and `max_patches` patches, one sequence at a time, with keys and values
/// of all layers kept, so that decoding goes on where the prompt ended. Everything is where the Vlm says; pixel values may lie in host
/// memory, states and logits stay there.
class Session {
  public:
    Session(const Vlm& vlm, std::int64_t max_tokens, std::int64_t max_patches, Arena& arena);

    /// Runs a whole prompt (unpadded). pixel_values [patches, patch_elements] in merge order, one grid a picture.
    /// Returns [tokens, hidden]: states before the final norm. Valid until the next call.
    Tensor encode(const nn::ParameterStore& weights, std::span<const std::int32_t> ids, const Tensor& pixel_values,
                  std::span<const GridThw> grids, const Observer& observe = {});

    /// More text after what was encoded: its states before the final norm [ids.size(), hidden]. Valid until the next call.
    Tensor extend(const nn::ParameterStore& weights, std::span<const std::int32_t> ids);
    /// One more token: its state before the final norm [1, hidden].
    Tensor decode(const nn::ParameterStore& weights, std::int32_t id) { return extend(weights, std::span(&id, 1)); }

    /// Logits [rows, vocabulary] of states [rows, hidden] before the final norm.
    void logits(const nn::ParameterStore& weights, const Tensor& states, const Tensor& out);

    std::int64_t length() const { return length_; }
    /// Where the next token stands, on all axes.
    std::int64_t next_position() const { return next_position_; }
    /// Forgets what came after `length` tokens, of which the last ones were text; the next stood at `position`.
    void rewind(std::int64_t length, std::int64_t position);
    /// A layer's keys and values of tokens [begin, length()): each [tokens, kv_heads * head_dim].
    Tensor keys(std::size_t layer, std::int64_t begin) const { return keys_[layer].slice(begin, length_); }
    Tensor values(std::size_t layer, std::int64_t begin) const {
        return keys_[layer].slice(max_tokens_ + begin, max_tokens_ + length_);
    }

  private:
    void run_vision(const nn::ParameterStore& weights, const Tensor& pixel_values, std::span<const GridThw> grids,
                    const Observer& observe);
    void run_merger(const nn::ParameterStore& weights, const Merger& merger, bool norm_after_merge, const Tensor& x,
                    const Tensor& out);
    /// Embeddings of the ids to hidden_; at image tokens, which are noted in image_rows_, the pictures' tokens in order.
    void embed(const nn::ParameterStore& weights, std::span<const std::int32_t> ids);
    /// Rotation tables of the next tokens.
    void rotate(std::span<const std::array<std::int64_t, 3>> positions);
    /// Tokens [length_, length_ + n) whose embeddings are in hidden_.
    Tensor run_text(const nn::ParameterStore& weights, std::int64_t n, const Observer& observe);

    const Vlm& vlm_;
    std::int64_t max_tokens_, max_patches_, length_ = 0, next_position_ = 0;
    std::vector<std::int32_t> image_rows_;
    Tensor hidden_, normed_, q_, attended_, gate_up_, act_, cosine_, sine_, attention_workspace_;
    std::vector<Tensor> keys_;  ///< per layer [max_tokens, 2 * kv_width]: keys, then values
    Tensor patches_, vision_normed_, vision_qkv_, vision_attended_, vision_act_, vision_cosine_, vision_sine_, merged_,
        merged_act_, picture_tokens_;
    // On a device alone: room for what comes from the host (i32 [tokens]; [patches, patch_elements]; i32 and f32 [patches, 4]), and
    // rotation tables of tokens or patches in host memory before they go there.
    Tensor embedding_rows_, image_rows_there_, pixels_, corners_, shares_, host_cosine_, host_sine_;
    std::vector<Tensor> deepstack_;
};

/// Softmax of the candidates' logits over the whole vocabulary and over the candidates alone, and the expectation
/// sum of s p(s) of scores 1, 2, … with the latter.
struct ScoreReading {
    std::vector<double> probability, renormalised;
    double probability_of_candidates = 0, expected_score = 0;
};
ScoreReading read_score(std::span<const float> logits, std::span<const std::int32_t> candidates);

}  // namespace atelier::vlm
