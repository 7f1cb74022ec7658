#pragma once

#include <map>
#include <vector>

#include "core/memory.hpp"
#include "judge/label_pass.hpp"
#include "judge/trained_judge.hpp"
#include "stage/trainer.hpp"

namespace atelier::stage {

/// Templates that labels are asked by, by kind and dimension.
class LabelTemplates {
  public:
    explicit LabelTemplates(std::filesystem::path directory) : directory_(std::move(directory)) {}
    /// Throws Error(input) naming the sample where there is none, or where it does not apply and the template's dimension always does.
    const judge::Template& at(const judge::LabelledSample& sample);

  private:
    std::filesystem::path directory_;
    std::map<std::string, std::vector<judge::Template>> by_kind_;
};

/// What [reward_train] trains.
judge::TrainedParts trained_parts(const Context& context);

/// Of the largest sample.
judge::LabelPass::Sizes training_sizes(const judge::QuestionMaker& model, LabelTemplates& templates, const std::vector<judge::LabelledSample>& labels);

/// A rank's share of reward-train; `model` where it is trained: all labels with the pictures of one; while training the model, its training and a sample's sequence; then
/// the judge that answers the held-out questions. Returns the sequence's bytes.
Bytes hold_reward_train(MemoryPlan& plan, const Context& context, const judge::QuestionMaker& model, const judge::LabelPass::Sizes& sizes,
                        const std::vector<judge::LabelledSample>& labels, const std::vector<judge::LabelledSample>& heldout, int ranks);

}  // namespace atelier::stage
