#include "judge/label_pass.hpp"

#include <algorithm>
#include <cmath>

namespace atelier::judge {

void LabelPass::Sizes::cover(const TrainingSample& s) {
    tokens = std::max(tokens, static_cast<std::int64_t>(s.question.ids.size()));
    patches = std::max(patches, s.question.vision.patches);
    rows = std::max(rows, static_cast<std::int64_t>(s.rows.size()) + 1);
}

LabelPass::LabelPass(const vlm::Vlm& vlm, double language_weight, const Sizes& sizes, Arena& arena)
    : language_weight_(language_weight),
      pass_(vlm, sizes.tokens, sizes.patches, sizes.rows, arena),
      logits_(arena.take_f32({sizes.rows, vlm.config().text.vocabulary})) {}

JudgeLoss LabelPass::run(const nn::ParameterStore& weights, const nn::ParameterStore& gradients, const TrainingSample& s, double weight,
                         const OnScore& on_score) {
    const auto n = static_cast<std::int64_t>(s.rows.size()), vocabulary = logits_.size(1);
    pass_.forward(weights, s.question.ids, s.question.pixel_values(), s.question.vision.image_grid_thw);
    std::vector<std::int64_t> rows = s.rows;
    if (s.score_row >= 0) rows.push_back(s.score_row);
    const auto answer = static_cast<std::int64_t>(rows.size());
    const Tensor logits = logits_.slice(0, answer);
    pass_.logits(weights, rows, logits);
    JudgeLoss loss;
    double mass = 0;
    if (s.score_row >= 0)
        loss.score = on_score({logits.f32() + n * vocabulary, static_cast<std::size_t>(vocabulary)},
                              weight * language_weight_ / static_cast<double>(answer), mass);
    loss.language = vlm::cross_entropy(s.targets, answer, logits.slice(0, n)) + mass / static_cast<double>(answer);
    const auto scale = static_cast<float>(weight * language_weight_);
    std::for_each_n(logits.f32(), n * vocabulary, [=](float& g) { g *= scale; });
    pass_.backward(weights, gradients, logits, {});
    return loss;
}

JudgeLoss LabelPass::add_sample(const nn::ParameterStore& weights, const nn::ParameterStore& gradients, const TrainingSample& s, double weight) {
    return run(weights, gradients, s, weight, [&](std::span<float> logits, double mass_weight, double& mass) {
        const ScoreLoss loss = score_loss(s.scores, s.candidates, weight, mass_weight, logits);
        mass = loss.mass;
        return loss.loss;
    });
}

double LabelPass::forward_score(const nn::ParameterStore& weights, const TrainingSample& s) {
    pass_.forward(weights, s.question.ids, s.question.pixel_values(), s.question.vision.image_grid_thw);
    const std::int64_t row = s.score_row;
    const Tensor logits = logits_.slice(0, 1);
    pass_.logits(weights, std::span(&row, 1), logits);
    return expected_score({logits.f32(), static_cast<std::size_t>(logits.size(1))}, s.candidates);
}

JudgeLoss LabelPass::add_pair(const nn::ParameterStore& weights, const nn::ParameterStore& gradients, const TrainingSample& better,
                              const TrainingSample& worse, double weight) {
    const double ahead = forward_score(weights, better) - forward_score(weights, worse);
    // d/dR of -ln sigma(R_better - R_worse).
    const double slope = -1 / (1 + std::exp(ahead));
    JudgeLoss total;
    total.score = std::log1p(std::exp(-ahead));
    for (const auto& [sample, sign] : {std::pair(&better, 1.0), std::pair(&worse, -1.0)}) {
        const JudgeLoss one = run(weights, gradients, *sample, weight / 2, [&, s = sample, f = sign](std::span<float> logits, double mass_weight, double& mass) {
            std::vector<float> copy(logits.begin(), logits.end());
            mass = score_loss({}, s->candidates, 0, mass_weight, logits).mass;
            score_gradient(s->candidates, weight * slope * f, copy);
            for (std::size_t i = 0; i < copy.size(); ++i) logits[i] += copy[i];
            return 0.0;
        });
        total.language += one.language / 2;
    }
    return total;
}

}  // namespace atelier::judge
