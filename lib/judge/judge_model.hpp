#pragma once

#include <filesystem>

#include "judge/question_maker.hpp"
#include "nn/frozen.hpp"

namespace atelier::judge {

/// A Qwen3-VL as a judge: a transformers directory, weights beside the files that QuestionMaker reads.
class JudgeModel : public QuestionMaker {
  public:
    /// `device`, `precision`: where the weights are, of a backend that is loaded, and of its products. Throws Error(input) naming the file and what is
    /// wrong with it.
    explicit JudgeModel(const std::filesystem::path& directory, Device device = Device::cpu,
                        ops::ProductPrecision precision = ops::ProductPrecision::fp32);

    const nn::ParameterStore& weights() const { return weights_; }

  private:
    Arena arena_;
    nn::FrozenWeights frozen_;
    nn::ParameterStore weights_;
};

}  // namespace atelier::judge
