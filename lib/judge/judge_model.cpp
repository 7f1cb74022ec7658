#include "judge/judge_model.hpp"

#include "nn/lora_file.hpp"

namespace atelier::judge {

JudgeModel::JudgeModel(const std::filesystem::path& directory, const std::filesystem::path& adapter)
    : QuestionMaker(directory), arena_("judge's weights", weight_bytes()), weights_(vlm().table(), arena_) {
    vlm::load(vlm(), weights_, directory);
    if (!adapter.empty()) nn::merge_lora(nn::load_lora(adapter, vlm().table()).store(), weights_);
}

}  // namespace atelier::judge
