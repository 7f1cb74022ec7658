#include "judge/judge_model.hpp"

namespace atelier::judge {

JudgeModel::JudgeModel(const std::filesystem::path& directory, Device device, ops::ProductPrecision precision)
    : QuestionMaker(directory, device, precision),
      arena_("judge's weights", weight_bytes()),
      frozen_(vlm().table(), arena_, device, precision),
      weights_(frozen_.store()) {
    vlm::load(vlm(), frozen_, directory);
}

}  // namespace atelier::judge
