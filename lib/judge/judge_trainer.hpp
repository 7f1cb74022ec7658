#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <vector>

#include "judge/judge_loss.hpp"
#include "judge/judge_model.hpp"
#include "model/vlm/training.hpp"
#include "nn/lora_file.hpp"
#include "optim/adamw.hpp"
#include "optim/gradient_norm.hpp"

namespace atelier::judge {

struct JudgeTrainerConfig {
    double language_weight = 1;  ///< of the rationale's language loss beside the score's
    bool train_vision = true;    ///< the vision tower; frozen otherwise
    bool train_mergers = true;   ///< what brings its pictures into the text: mergers, deepstack
    bool train_text = true;      ///< the language model and its head
    nn::LoraConfig lora;         ///< rank 0: the parts' own weights; else an adapter beside them, the weights stay
    std::uint64_t seed = 0;      ///< of a new adapter
    optim::AdamWConfig adamw;
    double max_grad_norm = 1;    ///< 0: never scaled down
};

/// What a sample or a pair of samples cost.
struct JudgeLoss {
    double score = 0;     ///< (R - y)^2, or -ln sigma(R_better - R_worse); 0 where the dimension does not apply
    double language = 0;  ///< mean over the answer's tokens
};

/// Trains a judge's weights in place, or an adapter of them: forward, losses and backward one sequence at a time, AdamW over
/// the flat vector of all parameters that are trained. The language loss is the mean, over the answer's tokens, of
/// -ln p(token), and of -ln p(any score token) where the score stands.
class JudgeTrainer {
  public:
    /// Plans for sequences of these sizes at most: tokens, patches, learnt tokens.
    struct Sizes {
        std::int64_t tokens = 0, patches = 0, rows = 0;
        void cover(const TrainingSample& sample);
    };
    /// Numbers that AdamW goes over, and all bytes that a trainer holds, without making one.
    static std::size_t trained_numbers(const vlm::Vlm& vlm, const JudgeTrainerConfig& config);
    static std::size_t planned_bytes(const vlm::Vlm& vlm, const JudgeTrainerConfig& config, const Sizes& sizes);
    /// Throws Error(usage) for an adapter of what is no product, and where nothing is trained.
    JudgeTrainer(const JudgeModel& model, const JudgeTrainerConfig& config, const Sizes& sizes);

    void zero_gradients();
    /// Adds the gradient of weight * (score loss + language_weight * language loss).
    JudgeLoss add_sample(const TrainingSample& sample, double weight);
    /// The same for a preference, with Bradley and Terry's loss on the expected scores in place of
    /// the distance to the labels.
    JudgeLoss add_pair(const TrainingSample& better, const TrainingSample& worse, double weight);
    /// Sums the gradients over ranks by `sum`, clips, updates. Returns the norm before clipping.
    /// Throws Error(numeric) for a gradient that is not finite.
    double step(double rate, const std::function<void(std::span<float>)>& sum);
    std::int64_t updates() const { return update_; }
    const nn::ParameterStore& gradients() const { return buffers_->gradients; }
    /// Null: the weights themselves are trained.
    const nn::LoraStore* adapter() const { return adapter_ ? &adapter_->store() : nullptr; }
    /// Adds the adapter to the model's weights. The last thing that is done with both.
    void merge() const;
    /// Moments and number of updates, HDF5; what is trained is kept beside them, an adapter (read from `adapter`) by nn::save_lora.
    /// Throws Error(io), Error(input).
    void save_state(const std::filesystem::path& file) const;
    void load_state(const std::filesystem::path& file, const std::filesystem::path& adapter = {});

  private:
    /// Gradients, a sequence's activations, its logits.
    struct Buffers {
        Buffers(const vlm::Vlm& vlm, const nn::LoraTable* adapter, const Sizes& sizes, Arena& arena);
        Buffers(const Buffers&) = delete;
        Buffers& operator=(const Buffers&) = delete;
        std::optional<nn::LoraStore> adapter_gradients;
        nn::ParameterStore gradients;  ///< by the model's table
        vlm::TrainingPass pass;
        Tensor logits;
    };
    /// Forward, then `on_score` makes the gradient of the score's row in place of its logits.
    JudgeLoss run(const TrainingSample& sample, double weight, double language_weight,
                  const std::function<double(std::span<float>, double mass_weight, double& mass)>&
                      on_score);
    double forward_score(const TrainingSample& sample);

    /// What AdamW goes over: the model's weights or the adapter's numbers; and their gradients.
    std::span<float> trained_values() const;
    std::span<float> trained_gradients() const;

    const JudgeModel& model_;
    JudgeTrainerConfig config_;
    Arena arena_;
    std::optional<nn::LoraAdapter> adapter_;
    nn::ParameterStore weights_;  ///< the model's, with the adapter beside them
    std::optional<Buffers> buffers_;
    std::vector<optim::ParameterRange> ranges_;  ///< of the rows of what AdamW goes over, in order
    std::vector<std::uint8_t> trained_;          ///< by range
    std::vector<float> m_, v_;
    std::int64_t update_ = 0;
    std::optional<optim::GradientNorm> norm_;
};

/// Writes a judge's directory under `directory`: weights in fp32, and the other files of `source`.
void save_judge(const JudgeModel& model, const std::filesystem::path& source,
                const std::filesystem::path& directory);

}  // namespace atelier::judge
