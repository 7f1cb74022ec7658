#include "judge/judge_model.hpp"

#include "nn/lora_file.hpp"
#include "ops/backend.hpp"

namespace atelier::judge {

JudgeModel::JudgeModel(const std::filesystem::path& directory, const std::filesystem::path& adapter, Device device)
    : QuestionMaker(directory, device),
      arena_("judge's weights", Workspace::measure([&](Arena& arena) { nn::ParameterStore(vlm().table(), arena, device); })),
      weights_(vlm().table(), arena_, device) {
    vlm::load(vlm(), weights_, directory);
    if (adapter.empty()) return;
    nn::merge_lora(nn::load_lora(adapter, vlm().table()).store(), weights_);
    if (device != Device::cpu) ops::backend().refresh_bf16_copy(weights_.data());
}

JudgeModel::~JudgeModel() {
    if (vlm().device() != Device::cpu) ops::backend().keep_bf16_copy(weights_.data(), 0);
}

}  // namespace atelier::judge
