#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/arena.hpp"
#include "model/vlm/geometry.hpp"
#include "model/vlm/vlm.hpp"

namespace atelier::vlm {

/// Forward and backward of one unpadded sequence, with its pictures, through the whole model: vision tower, mergers, deepstack,
/// language model, head. Everything that the backward pass needs is kept. Where blocks of weights or gradients are gathered and cut
/// (nn/sharded.hpp) every rank passes through sequences of one kind, with pictures or without.
class TrainingPass {
  public:
    /// Everything is where the Vlm says; pixel values, logits and their gradient may lie in host memory. Plans for sequences of up to `max_tokens` tokens, `max_patches` patches and `max_rows` rows with logits.
    TrainingPass(const Vlm& vlm, std::int64_t max_tokens, std::int64_t max_patches, std::int64_t max_rows, Arena& arena);

    /// Inputs as in Session::encode; they must live until `backward` has run. Returns the states before the final norm
    /// [tokens, hidden].
    Tensor forward(const nn::ParameterStore& weights, std::span<const std::int32_t> ids, const Tensor& pixel_values,
                   std::span<const GridThw> grids);

    /// Logits [rows.size(), vocabulary] at some of the sequence's tokens, none named twice, in the order of `rows`.
    void logits(const nn::ParameterStore& weights, std::span<const std::int64_t> rows, const Tensor& out);

    /// From the gradient of the last logits [rows, vocabulary] (empty: none) and of the states before the final norm
    /// [tokens, hidden] (empty: none): adds to the gradient of every parameter, or of the weights' adapter alone (nn/lora.hpp).
    void backward(const nn::ParameterStore& weights, const nn::ParameterStore& gradients, const Tensor& d_logits,
                  const Tensor& d_states);

  private:
    struct TextActivations {
        Tensor x, inverse1, y1, q_in, k_in, q, k, v, q_inverse, k_inverse, attended, log_sum_exp, middle, inverse2, y2, gate, up, act;
    };
    struct VisionActivations {
        Tensor x, mean1, inverse1, y1, qkv, attended, log_sum_exp, middle, mean2, inverse2, y2, fc1, act;
    };
    struct MergerActivations {
        Tensor mean, inverse, merged, fc1, act;
    };
    void plan_merger(MergerActivations& a, bool norm_after_merge, Arena& arena) const;
    void forward_merger(const nn::ParameterStore& weights, const Merger& merger, bool norm_after_merge, MergerActivations& a,
                        const Tensor& x, const Tensor& out) const;
    /// d_x [patches, hidden] is added to.
    void backward_merger(const nn::ParameterStore& weights, const nn::ParameterStore& gradients, const Merger& merger,
                         bool norm_after_merge, MergerActivations& a, const Tensor& x, const Tensor& d_out, const Tensor& d_x);
    void forward_vision(const nn::ParameterStore& weights);
    void backward_vision(const nn::ParameterStore& weights, const nn::ParameterStore& gradients);
    void forward_text(const nn::ParameterStore& weights);
    void backward_text(const nn::ParameterStore& weights, const nn::ParameterStore& gradients, const Tensor& d_x);
    void backward_embedding(const Tensor& d_x, const Tensor& d_table) const;
    std::int64_t image_tokens() const { return static_cast<std::int64_t>(image_rows_.size()); }

    const Vlm& vlm_;
    std::int64_t max_tokens_, max_patches_, max_rows_;
    // The sequence of the last forward pass.
    std::int64_t tokens_ = 0;
    std::span<const std::int32_t> ids_;
    std::span<const GridThw> grids_;
    Tensor pixel_values_;
    std::vector<std::int32_t> image_rows_, logit_rows_, limits_;
    Tensor image_tokens_at_;  ///< image_rows_ where the pass runs

    Tensor states_, cosine_, sine_, logit_in_, logit_inverse_, logit_normed_, attention_workspace_;
    std::vector<TextActivations> text_;
    Tensor patches_, vision_cosine_, vision_sine_, picture_tokens_;
    std::vector<Tensor> deepstack_;
    std::vector<VisionActivations> vision_;
    MergerActivations merger_;
    std::vector<MergerActivations> deepstack_mergers_;
    // Gradients.
    Tensor d_states_, d_y_, d_q_, d_kv_, d_attended_, d_gate_up_, d_act_, d_logit_;
    Tensor d_patches_, d_branch_, d_vision_y_, d_qkv_, d_vision_act_, d_merged_, d_merged_act_, d_picture_tokens_;
    std::vector<Tensor> d_deepstack_;
    // On a device alone: room for what comes from the host and goes back, and rotation tables in host memory before they go there.
    Tensor logits_there_, tokens_there_, rows_there_, image_rows_there_, pixels_there_, corners_there_, shares_there_, host_cosine_, host_sine_;
};

/// Mean cross-entropy over `count` labels: `targets` has one for each row of logits [rows, vocabulary], over which its gradient is
/// written. Sums are in double. Returns the rows' share of the mean.
double cross_entropy(std::span<const std::int32_t> targets, std::int64_t count, const Tensor& logits);

}  // namespace atelier::vlm
