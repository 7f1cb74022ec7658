#include "judge/judge_loss.hpp"

#include <algorithm>
#include <cmath>

#include "core/error.hpp"

namespace atelier::judge {
namespace {

struct Softmax {
    double top = -INFINITY, all = 0, some = 0;  ///< sums of exp(z - top)
};

Softmax sums(std::span<const float> logits, std::span<const std::int32_t> candidates) {
    Softmax s;
    for (const float z : logits) s.top = std::max(s.top, static_cast<double>(z));
    for (const float z : logits) s.all += std::exp(z - s.top);
    for (const std::int32_t id : candidates)
        s.some += std::exp(logits[static_cast<std::size_t>(id)] - s.top);
    return s;
}

}  // namespace

TrainingSample make_training_sample(const QuestionMaker& model, const Template& asked,
                                    const LabelledSample& labelled) {
    ATELIER_CHECK_INPUT(!labelled.rationale.empty(),
                        "{} of '{}' has no rationale: a judge learns scores from reasons",
                        labelled.dimension, labelled.id);
    ATELIER_CHECK_INPUT(labelled.rationale.find(score_marker) == std::string::npos, "the rationale of {} of '{}' holds \"{}\": it would teach two scores",
                        labelled.dimension, labelled.id, score_marker);
    ATELIER_CHECK_INPUT(labelled.applies() || asked.may_not_apply, "{} of '{}' is said not to apply, and {} has no may_not_apply", labelled.dimension,
                        labelled.id, asked.path.string());
    const io::Image picture = labelled.picture->load();
    std::vector<io::Image> sources;
    for (const auto& source : labelled.sources) sources.push_back(source->load());
    TrainingSample t;
    try {
        t.question = model.make_question(make_conversation(asked, labelled.prompt, picture, sources));
    } catch (const Error& e) {
        ATELIER_FAIL(ErrorKind::input, "{} of '{}': {}", labelled.dimension, labelled.id, e.message());
    }
    const ScoreTokens score = model.score_tokens(asked);
    t.candidates = score.candidates;
    auto& ids = t.question.ids;
    const auto learn = [&](std::int32_t id) {
        t.rows.push_back(static_cast<std::int64_t>(ids.size()) - 1);
        t.targets.push_back(id);
    };
    const auto say = [&](std::span<const std::int32_t> said) {
        for (const std::int32_t id : said) {
            learn(id);
            ids.push_back(id);
        }
    };
    say(model.tokenizer().encode(labelled.rationale + "\n" + score_marker));
    if (labelled.applies()) {
        t.scores = labelled.given_scores();
        say(score.gap);
        t.score_row = static_cast<std::int64_t>(ids.size()) - 1;
        ids.push_back(t.candidates[static_cast<std::size_t>(std::lround(labelled.mean_score())) - 1]);
    } else {
        say(score.none);
    }
    learn(model.end_of_turn());
    return t;
}

double expected_score(std::span<const float> logits, std::span<const std::int32_t> candidates) {
    const Softmax s = sums(logits, candidates);
    double r = 0;
    for (std::size_t i = 0; i < candidates.size(); ++i)
        r += static_cast<double>(i + 1) *
             std::exp(logits[static_cast<std::size_t>(candidates[i])] - s.top) / s.some;
    return r;
}

ScoreLoss score_loss(std::span<const double> labels, std::span<const std::int32_t> candidates,
                     double weight, double mass_weight, std::span<float> logits) {
    const Softmax s = sums(logits, candidates);
    ScoreLoss result;
    result.expected = expected_score(logits, candidates);
    result.mass = std::log(s.all) - std::log(s.some);
    double slope = 0;  // d loss / d R
    for (const double y : labels) {
        const double off = result.expected - y;
        result.loss += off * off / static_cast<double>(labels.size());
        slope += 2 * off / static_cast<double>(labels.size());
    }
    std::vector<double> q;
    for (const std::int32_t id : candidates)
        q.push_back(std::exp(logits[static_cast<std::size_t>(id)] - s.top) / s.some);
    for (float& z : logits)
        z = static_cast<float>(mass_weight * std::exp(z - s.top) / s.all);
    for (std::size_t i = 0; i < candidates.size(); ++i)
        logits[static_cast<std::size_t>(candidates[i])] += static_cast<float>(
            q[i] * (weight * slope * (static_cast<double>(i + 1) - result.expected) - mass_weight));
    return result;
}

double score_gradient(std::span<const std::int32_t> candidates, double coefficient,
                      std::span<float> logits) {
    const Softmax s = sums(logits, candidates);
    const double r = expected_score(logits, candidates);
    std::vector<double> q;
    for (const std::int32_t id : candidates)
        q.push_back(std::exp(logits[static_cast<std::size_t>(id)] - s.top) / s.some);
    std::fill(logits.begin(), logits.end(), 0.0f);
    for (std::size_t i = 0; i < candidates.size(); ++i)
        logits[static_cast<std::size_t>(candidates[i])] =
            static_cast<float>(coefficient * q[i] * (static_cast<double>(i + 1) - r));
    return r;
}

}  // namespace atelier::judge
