#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "judge/template.hpp"
#include "model/processor/image_inputs.hpp"
#include "model/tokenizer/tokenizer.hpp"
#include "model/vlm/vlm.hpp"

namespace atelier::judge {

/// How many tokens two texts begin with alike.
std::size_t common_prefix(std::span<const std::int32_t> a, std::span<const std::int32_t> b);

/// A question as the model takes it: the chat template's tokens up to where the answer begins.
struct Question {
    std::vector<std::int32_t> ids;  ///< a picture's token repeated once for each of its merged patches
    model::VisionInputs vision;
    Tensor pixel_values() const {
        return Tensor::of(vision.pixel_values.data(), {vision.patches, vision.patch_elements});
    }
};

/// The tokens around a template's score. After the reason the answer goes on with `marker` ("Score:"),
/// then `gap`, then one of `candidates`; or, where the dimension does not apply, with `absent` at
/// the `absent_at`-th place after the marker.
struct ScoreTokens {
    std::vector<std::int32_t> marker, gap, candidates;
    std::vector<std::int32_t> none;  ///< what follows the marker where the dimension does not apply
    std::int32_t absent = -1;  ///< -1: the dimension always applies
    std::size_t absent_at = 0;  ///< 0 to gap.size()
};

/// A judge without its weights: questions in its tokens, and the sizes that it is made of.
class QuestionMaker {
  public:
    /// Of a transformers directory (config.json, tokenizer.json, preprocessor_config.json or processor_config.json). `device`, `precision`: where the
    /// model runs and of its products there. Throws Error(input) naming the file and what is wrong with it.
    explicit QuestionMaker(const std::filesystem::path& directory, Device device = Device::cpu,
                           ops::ProductPrecision precision = ops::ProductPrecision::fp32);

    /// Tokens of a conversation in Qwen's chat template, pictures over white through the processor. `seen`: what another question has of
    /// the same pictures; they are not prepared again, and this question's own `vision` stays empty.
    /// Throws Error(reward) for a text that holds a special token's spelling: it would forge a turn.
    Question make_question(const Conversation& conversation, const model::VisionInputs* seen = nullptr) const;
    /// Throws Error(usage) naming the template for score tokens that are not one token each.
    ScoreTokens score_tokens(const Template& asked) const;

    const vlm::Vlm& vlm() const { return *vlm_; }
    const model::Tokenizer& tokenizer() const { return tokenizer_; }
    std::int32_t end_of_turn() const { return end_of_turn_; }
    /// Whether a model that writes this token has finished: the end of its turn, or of all text, where base models end.
    bool is_end(std::int32_t id) const { return id == end_of_turn_ || tokenizer_.spelling(id) == "<|endoftext|>"; }
    /// Of the weights of a judge that nobody trains.
    Bytes weight_bytes() const;
    const std::filesystem::path& directory() const { return directory_; }

  private:
    std::filesystem::path directory_;
    model::Tokenizer tokenizer_;
    model::ProcessorConfig processor_;
    std::unique_ptr<vlm::Vlm> vlm_;
    std::int32_t start_of_turn_, end_of_turn_, vision_start_, vision_end_;
};

}  // namespace atelier::judge
