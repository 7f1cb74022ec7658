#pragma once

#include <map>
#include <vector>

#include "core/memory.hpp"
#include "judge/judge_trainer.hpp"
#include "stage/context.hpp"

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

/// The settings of [reward_train] for the trainer.
judge::JudgeTrainerConfig judge_trainer_config(const Context& context);

/// Of the largest sample.
judge::JudgeTrainer::Sizes training_sizes(const judge::QuestionMaker& model, LabelTemplates& templates, const std::vector<judge::LabelledSample>& labels);

/// A rank's share of reward-train: the model, its training, all labels with the pictures of one, and the judge that answers the held-out
/// questions in the end.
void hold_reward_train(MemoryPlan& plan, const Context& context, const judge::QuestionMaker& model, const judge::JudgeTrainer::Sizes& sizes,
                       const std::vector<judge::LabelledSample>& labels, const std::vector<judge::LabelledSample>& heldout, int ranks);

}  // namespace atelier::stage
