#include "model/processor/prompt.hpp"

#include "core/error.hpp"

namespace atelier::model {

namespace {

constexpr std::string_view system_turn =
    "<|im_start|>system\nComprehend and analyze the provided prompt.<|im_end|>\n";
constexpr std::string_view image_pad = "<|image_pad|>";

}  // namespace

std::string prompt_text(std::string_view prompt, std::size_t references) {
    std::string text(system_turn);
    text += "<|im_start|>user\n";
    for (std::size_t i = 1; i <= references; ++i) {
        text += fmt::format("{}<image{}><|vision_start|>{}<|vision_end|>", i == 1 ? "" : " ", i,
                            image_pad);
    }
    text += prompt.empty() ? " " : prompt;
    text += "<|im_end|>\n<|im_start|>assistant\n";
    return text;
}

PromptInputs build_prompt(const Tokenizer& tokenizer, const ProcessorConfig& config,
                          std::string_view prompt, std::shared_ptr<const ReferenceInputs> images) {
    ATELIER_CHECK_INPUT(prompt.find(image_pad) == std::string_view::npos,
                        "the prompt holds {}, which stands for a reference picture; take it out",
                        image_pad);
    if (images && images->references.empty()) images = nullptr;
    const std::size_t count = images ? images->references.size() : 0;
    const std::int32_t slot = tokenizer.id_of(image_pad);

    PromptInputs inputs;
    inputs.drop_idx = static_cast<std::int64_t>(tokenizer.encode(system_turn).size());
    std::size_t picture = 0;
    for (std::int32_t id : tokenizer.encode(prompt_text(prompt, count))) {
        std::int64_t copies = 1;
        if (id == slot) {
            ATELIER_CHECK(picture < count, "more image slots than the {} pictures", count);
            const auto [frames, high, wide] = images->vision.image_grid_thw[picture++];
            copies = frames * high * wide / (config.merge_size * config.merge_size);
        }
        inputs.input_ids.insert(inputs.input_ids.end(), static_cast<std::size_t>(copies), id);
        inputs.image_mask.insert(inputs.image_mask.end(), static_cast<std::size_t>(copies),
                                 id == slot);
    }
    ATELIER_CHECK_INPUT(
        picture == count,
        "{}: expected {} image slots in the template, found {}: {} is no added token",
        tokenizer.path().string(), count, picture, image_pad);
    inputs.images = std::move(images);
    return inputs;
}

}  // namespace atelier::model
