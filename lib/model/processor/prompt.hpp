#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "model/processor/image_inputs.hpp"
#include "model/tokenizer/tokenizer.hpp"

namespace atelier::model {

/// One prompt as the condition encoder takes it (no padding; a batch is the encoder's business).
struct PromptInputs {
    std::vector<std::int32_t>
        input_ids;  ///< [tokens], `<|image_pad|>` repeated once per merged patch
    std::vector<std::uint8_t> image_mask;  ///< [tokens], 1 where the id is `<|image_pad|>`
    /// Leading tokens (the system turn) whose hidden states are dropped; the DiT sees
    /// tokens − drop_idx of them, and image_mask from drop_idx on.
    std::int64_t drop_idx = 0;
    /// Null for text-to-image. Slots of image_mask follow its pictures in order.
    std::shared_ptr<const ReferenceInputs> images;

    std::int64_t tokens() const { return static_cast<std::int64_t>(input_ids.size()); }
};

/// The text that QwenImage21Pipeline gives to its processor (fixed template, not the chat
/// template): system turn, then the user's, with
/// "<image1><|vision_start|><|image_pad|><|vision_end|> <image2>…" before `prompt` if there are
/// references. An empty prompt becomes one space.
std::string prompt_text(std::string_view prompt, std::size_t references);

/// Tokens of `prompt` with `images` (null or empty: text-to-image). A negative prompt is built in
/// the same way with the same images. drop_idx is counted by tokenising the system turn. Throws
/// Error(input) if the prompt itself holds `<|image_pad|>`, which would claim a picture that isn't
/// there.
PromptInputs build_prompt(const Tokenizer& tokenizer, const ProcessorConfig& config,
                          std::string_view prompt,
                          std::shared_ptr<const ReferenceInputs> images = nullptr);

}  // namespace atelier::model
