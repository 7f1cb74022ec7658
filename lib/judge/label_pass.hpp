#pragma once

#include <functional>

#include "judge/judge_loss.hpp"
#include "model/vlm/training.hpp"

namespace atelier::judge {

/// What a sample or a pair of samples cost.
struct JudgeLoss {
    double score = 0;     ///< (R - y)^2, or -ln sigma(R_better - R_worse); 0 where the dimension does not apply
    double language = 0;  ///< mean over the answer's tokens
};

/// Forward, losses and backward of labelled samples through a judge, one sequence at a time. The language loss is the mean, over the
/// answer's tokens, of -ln p(token), and of -ln p(any score token) where the score stands.
class LabelPass {
  public:
    /// Of sequences at most: tokens, patches, learnt tokens.
    struct Sizes {
        std::int64_t tokens = 0, patches = 0, rows = 0;
        void cover(const TrainingSample& sample);
    };
    /// `language_weight`: of the rationale's language loss beside the score's.
    LabelPass(const vlm::Vlm& vlm, double language_weight, const Sizes& sizes, Arena& arena);

    /// Adds the gradient of weight * (score loss + language weight * language loss).
    JudgeLoss add_sample(const nn::ParameterStore& weights, const nn::ParameterStore& gradients, const TrainingSample& sample, double weight);
    /// The same for a preference, with Bradley and Terry's loss on the expected scores in place of the distance to the labels.
    JudgeLoss add_pair(const nn::ParameterStore& weights, const nn::ParameterStore& gradients, const TrainingSample& better,
                       const TrainingSample& worse, double weight);

  private:
    /// Makes the gradient of the score's row in place of its logits; returns the loss.
    using OnScore = std::function<double(std::span<float> logits, double mass_weight, double& mass)>;
    JudgeLoss run(const nn::ParameterStore& weights, const nn::ParameterStore& gradients, const TrainingSample& sample, double weight,
                  const OnScore& on_score);
    double forward_score(const nn::ParameterStore& weights, const TrainingSample& sample);

    double language_weight_;
    vlm::TrainingPass pass_;
    Tensor logits_;
};

}  // namespace atelier::judge
