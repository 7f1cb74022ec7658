#pragma once

#include <filesystem>

#include "judge/question_maker.hpp"
#include "nn/parameters.hpp"

namespace atelier::judge {

/// A Qwen3-VL as a judge: a transformers directory, weights beside the files that QuestionMaker reads.
class JudgeModel : public QuestionMaker {
  public:
    /// `device`: where the weights are, of a backend that is loaded. Throws Error(input) naming the file and what is wrong with it.
    explicit JudgeModel(const std::filesystem::path& directory, Device device = Device::cpu);
    ~JudgeModel();
    JudgeModel(const JudgeModel&) = delete;

    const nn::ParameterStore& weights() const { return weights_; }

  private:
    Arena arena_;
    nn::ParameterStore weights_;
};

}  // namespace atelier::judge
