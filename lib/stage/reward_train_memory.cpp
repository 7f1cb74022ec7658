#include "stage/reward_train_memory.hpp"

#include <algorithm>
#include <set>

#include "stage/judge_report.hpp"

namespace atelier::stage {

const judge::Template& LabelTemplates::at(const judge::LabelledSample& s) {
    auto& of_kind = by_kind_[s.kind];
    if (of_kind.empty()) of_kind = judge::read_templates(directory_, s.kind);
    const auto found = std::find_if(of_kind.begin(), of_kind.end(), [&](const judge::Template& t) { return t.dimension == s.dimension; });
    ATELIER_CHECK_INPUT(found != of_kind.end(), "{} holds no template for {} of {}, which '{}' is labelled for", directory_.string(), s.dimension,
                        s.kind, s.id);
    ATELIER_CHECK_INPUT(s.applies() || found->may_not_apply, "'{}' is labelled as one that {} does not apply to, and {} has no may_not_apply", s.id,
                        s.dimension, found->path.string());
    return *found;
}

judge::JudgeTrainerConfig judge_trainer_config(const Context& c) {
    const config::Config& config = c.config;
    judge::JudgeTrainerConfig t;
    t.lora = c.lora("reward_train.lora_");
    t.seed = c.seed() ^ task_number("lora/judge");
    t.language_weight = config.number("reward_train.language_weight");
    t.train_vision = config.flag("reward_train.vision");
    t.train_mergers = config.flag("reward_train.mergers");
    t.train_text = config.flag("reward_train.text");
    t.adamw = {0.9, 0.999, 1e-8, config.number("reward_train.weight_decay")};
    t.max_grad_norm = config.number("reward_train.max_grad_norm");
    return t;
}

judge::JudgeTrainer::Sizes training_sizes(const judge::QuestionMaker& model, LabelTemplates& templates, const std::vector<judge::LabelledSample>& labels) {
    judge::JudgeTrainer::Sizes sizes;
    for (const judge::LabelledSample& s : labels) sizes.cover(judge::make_training_sample(model, templates.at(s), s));
    return sizes;
}

void hold_reward_train(MemoryPlan& plan, const Context& c, const judge::QuestionMaker& model, const judge::JudgeTrainer::Sizes& sizes,
                       const std::vector<judge::LabelledSample>& labels, const std::vector<judge::LabelledSample>& heldout, int ranks) {
    const judge::JudgeTrainerConfig config = judge_trainer_config(c);
    plan.hold("weights", model.weight_bytes());
    plan.hold("training", judge::JudgeTrainer::planned_bytes(model.vlm(), config, sizes));
    plan.hold("gradients' sum", comm::sum_bytes(ranks, judge::JudgeTrainer::trained_numbers(model.vlm(), config)));
    std::set<const judge::LabelledPicture*> pictures;  // files are read when a sample is made
    std::size_t bytes = 0, shown = 0;
    for (const auto* list : {&labels, &heldout})
        for (const judge::LabelledSample& s : *list) {
            bytes += sizeof(s) + s.prompt.size() + s.rationale.size() + s.scores.size() * sizeof(s.scores[0]);
            std::size_t of_sample = s.picture->bytes();
            for (const auto& source : s.sources) of_sample += source->bytes();
            shown = std::max(shown, of_sample);
            if (pictures.insert(s.picture.get()).second) bytes += sizeof(*s.picture);
            for (const auto& source : s.sources)
                if (pictures.insert(source.get()).second) bytes += sizeof(*source);
        }
    plan.hold("labels", bytes);
    plan.hold("a label's pictures", shown);
    plan.hold_during("reporting", "the trained judge", judging_bytes(c, model, heldout));
}

}  // namespace atelier::stage
