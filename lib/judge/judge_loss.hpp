#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "judge/labels.hpp"
#include "judge/question_maker.hpp"

namespace atelier::judge {

/// A labelled answer as the model learns it: the question, the rationale, "Score:", the score token
/// nearest to the mean label, the end of the turn. Where the dimension does not apply "none" stands in the score's place.
struct TrainingSample {
    Question question;  ///< its ids go on through the answer, without the end of the turn
    std::vector<std::int64_t> rows;     ///< tokens whose successor is learnt …
    std::vector<std::int32_t> targets;  ///< … and which it is
    std::int64_t score_row = -1;        ///< the token whose successor is the score; -1: the dimension does not apply
    std::vector<std::int32_t> candidates;  ///< score tokens 1 to 5
    std::vector<double> scores;            ///< labels, one for each annotator who gave a score
};
/// Throws Error(input) naming the sample if it has no rationale, or does not apply where the template's dimension always does.
TrainingSample make_training_sample(const QuestionMaker& model, const Template& asked,
                                    const LabelledSample& labelled);

/// Expected score R = sum of s q(s), q the softmax over the candidates' logits alone.
double expected_score(std::span<const float> logits, std::span<const std::int32_t> candidates);

struct ScoreLoss {
    double expected = 0;  ///< R
    double loss = 0;      ///< mean over the labels of (R - y)^2
    double mass = 0;      ///< -ln of the probability that any score token comes
};
/// Writes over the logits [vocabulary] the gradient of weight * loss + mass_weight * mass:
/// dR/dz_s = q_s (s - R); d mass/dz_j = p_j - q_j, q_j = 0 outside the candidates.
ScoreLoss score_loss(std::span<const double> labels, std::span<const std::int32_t> candidates,
                     double weight, double mass_weight, std::span<float> logits);

/// Writes over the logits [vocabulary] the gradient of coefficient * R.
double score_gradient(std::span<const std::int32_t> candidates, double coefficient,
                      std::span<float> logits);

}  // namespace atelier::judge
