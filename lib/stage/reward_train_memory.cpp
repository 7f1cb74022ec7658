#include "stage/reward_train_memory.hpp"

#include <algorithm>
#include <optional>
#include <set>

#include "ops/cpu/amx_matmul.hpp"
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

judge::TrainedParts trained_parts(const Context& c) {
    return {c.config.flag("reward_train.vision"), c.config.flag("reward_train.mergers"), c.config.flag("reward_train.text"),
            c.lora("reward_train.lora_"), c.seed() ^ task_number("lora/judge")};
}

judge::LabelPass::Sizes training_sizes(const judge::QuestionMaker& model, LabelTemplates& templates, const std::vector<judge::LabelledSample>& labels) {
    judge::LabelPass::Sizes sizes;
    for (const judge::LabelledSample& s : labels) sizes.cover(judge::make_training_sample(model, templates.at(s), s));
    return sizes;
}

Bytes hold_reward_train(MemoryPlan& plan, const Context& c, const judge::QuestionMaker& model, const judge::LabelPass::Sizes& sizes,
                        const std::vector<judge::LabelledSample>& labels, const std::vector<judge::LabelledSample>& heldout, int ranks) {
    const int zero = static_cast<int>(c.config.integer("compute.zero"));
    const nn::LoraConfig lora = trained_parts(c).lora;
    std::optional<nn::LoraTable> adapter;
    if (lora.rank > 0) adapter.emplace(model.vlm().table(), lora);
    const nn::LoraTable* adapted = adapter ? &*adapter : nullptr;
    const TrainerBytes trainer = trainer_bytes(model.vlm().table(), adapted, zero, ranks, false, false, c.device(),
                                               model.vlm().precision(), c.keeps_state_on_host());
    const Bytes sequence = Workspace::measure([&](Arena& arena) { judge::LabelPass(model.vlm(), 0, sizes, arena); });
    const auto hold = [&](const char* what, const Bytes& bytes) { plan.hold_during("training", what, bytes); };
    if (c.device() != Device::cpu) plan.hold_device_libraries();
    else {
        const std::int64_t width = model.vlm().config().text.hidden;
        plan.hold("turned operands", ops::cpu::turned_operand_bytes(width));
        plan.hold("packed operands", ops::cpu::packed_operand_bytes(width, model.vlm().precision()));
    }
    plan.hold_of_libraries("collectives", trainer.collectives);
    const Bytes parameters = judge::TrainedJudge::weight_bytes(model.vlm(), adapted, zero == 3 ? ranks : 0);
    hold("parameters", parameters);
    hold("gradients", trainer.gradients);
    hold("optimizer", trainer.optimizer);
    if (c.config.integer("reward_train.publish_every") > 0) hold("state in writing", trainer.snapshot);
    hold("a sample's sequence", sequence);
    plan.hold_during("publishing", "parameters", parameters);
    plan.hold_during("publishing", "weights to files", trainer.window);
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
    plan.hold_during("reporting", "the trained judge", judging_bytes(c, judge::QuestionMaker(model.directory(), c.judge_device(), c.product_precision()), heldout));
    return sequence;
}

}  // namespace atelier::stage
