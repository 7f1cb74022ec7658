#include "judge/judge_model.hpp"

#include "ops/backend.hpp"

namespace atelier::judge {

JudgeModel::JudgeModel(const std::filesystem::path& directory, Device device)
    : QuestionMaker(directory, device),
      arena_("judge's weights", Workspace::measure([&](Arena& arena) { nn::ParameterStore(vlm().table(), arena, device); })),
      weights_(vlm().table(), arena_, device) {
    vlm::load(vlm(), weights_, directory);
}

JudgeModel::~JudgeModel() {
    if (vlm().device() != Device::cpu) ops::backend().keep_bf16_copy(weights_.data(), 0);
}

}  // namespace atelier::judge
