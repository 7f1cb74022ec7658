#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "judge/judge_model.hpp"
#include "judge/template.hpp"
#include "ops/precision.hpp"
#include "reward/scorer.hpp"

namespace atelier::judge {

struct NativeJudgeConfig {
    std::filesystem::path directory;  ///< of the model
    int answers = 16;          ///< written at once; a sample needs one for each dimension
    std::int64_t context = 2048;  ///< tokens of a question at most, pictures included
    double temperature = 0;    ///< of the reasoning; 0: the likeliest token, at the first attempt
    std::uint64_t seed = 0;
    Device device = Device::cpu;  ///< where it runs; on a device in turn with what else runs there (core/device_turn.hpp)
    /// Of products on a device, the process's there; on the CPU they are in fp32.
    ops::ProductPrecision precision = ops::ProductPrecision::fp32;
};

/// Bytes that a NativeJudge of this model takes, as its bytes() says, without making one.
Bytes native_judge_bytes(const QuestionMaker& model, const NativeJudgeConfig& config, const std::map<std::string, std::vector<Template>>& templates,
                         std::size_t workers, std::size_t picture_bytes);

/// Throws Error(usage) where a sample has more dimensions than answers are written at once.
void check_answers(const NativeJudgeConfig& config, const std::map<std::string, std::vector<Template>>& templates);

/// Judges with the engine's own Qwen3-VL. Pictures, question and prompt run once for all dimensions
/// of a sample whose templates have the same system text, question and pictures; then all answers
/// of all samples at hand are written token by token in one batch, samples coming and going. A
/// sample's verdicts have the same bits in any company, at any number of ranks. On a device weights and buffers are there and a turn is a
/// sample's questions, or a token of all answers; tokens are chosen on the host, from logits that come in one copy a token.
///
/// The reason ends where the model writes "Score:" or ends its turn, or after reasoning_tokens (then it says so: `cut_mark`); the
/// score is the expectation over the score tokens at the place that follows. An answer without
/// reason fails. Sampling is keyed by (seed, sample, dimension, attempt, place); further attempts draw at a temperature of 0.7 at least.
class NativeJudge final : public reward::Scorer {
  public:
    /// `templates` by kind. Throws Error(input) for the model's files, Error(usage) for templates
    /// that don't fit it, or a device that isn't there. Without a turn of the device.
    NativeJudge(const NativeJudgeConfig& config,
                std::map<std::string, std::vector<Template>> templates);
    ~NativeJudge() override;

    const std::vector<std::string>& dimensions(const std::string& kind) const override;
    reward::Verdicts score(const reward::Request& request, int attempt) const override;
    void interrupt() const noexcept override;
    Bytes bytes(std::size_t workers, std::size_t picture_bytes) const override;

  private:
    class Engine;
    std::unique_ptr<Engine> engine_;
};

}  // namespace atelier::judge
