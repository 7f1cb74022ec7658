#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "io/image/png.hpp"
#include "io/safetensors.hpp"
#include "model/processor/prompt.hpp"
#include "oracle_folder.hpp"

namespace atelier::model {
namespace {

using nlohmann::json;

json read(const std::filesystem::path& path) {
    std::ifstream stream(path);
    return json::parse(stream);
}

std::vector<std::int64_t> as_integers(const std::vector<std::uint8_t>& mask, std::int64_t from) {
    return {mask.begin() + from, mask.end()};
}

TEST(prompt_oracle, SlotsAndLengthsOfThePipeline) {
    const auto processor = testing::oracle_folder() / "pipeline/pipeline/processor";
    const Tokenizer tokenizer = Tokenizer::load(processor);
    const ProcessorConfig config = ProcessorConfig::load(processor);
    int cases = 0;
    for (const auto& folder : testing::oracle_cases("pipeline", "case-e2e-")) {
        SCOPED_TRACE(folder.filename().string());
        const json meta = read(folder / "case.json");
        const auto outputs = io::Safetensors::open(folder / "outputs.safetensors");
        std::vector<io::Image> pictures;
        for (const json& name : meta.at("images"))
            pictures.push_back(io::read_png(folder / name.get<std::string>()));
        const auto resolution = meta.at("output_resolution").get<std::int64_t>();
        const auto references = std::make_shared<const ReferenceInputs>(
            prepare_references(config, pictures, resolution));
        const PromptInputs inputs =
            build_prompt(tokenizer, config, meta.at("prompt").get<std::string>(), references);

        EXPECT_EQ(inputs.tokens() - inputs.drop_idx, outputs.at("prompt_embeds").shape[1]);
        EXPECT_EQ(as_integers(inputs.image_mask, inputs.drop_idx), outputs.integers("image_slots"));
        EXPECT_EQ(tokenizer.spelling(inputs.input_ids[static_cast<std::size_t>(inputs.drop_idx)]),
                  "<|im_start|>");
        std::int64_t slots = 0, latents = 0;
        for (std::uint8_t slot : inputs.image_mask) slots += slot;
        for (const auto& reference : references->references)
            latents += reference.latent_height * reference.latent_width;
        EXPECT_EQ(4 * slots, latents);
        if (!pictures.empty()) {
            EXPECT_EQ(output_size(0, 0, resolution, pictures),
                      (PictureSize{meta.at("width"), meta.at("height")}));
        }
        ++cases;
    }
    EXPECT_GE(cases, 4);
}

/// The encoder's cases hold the ids that its processor made of the pipeline's and other templates.
TEST(prompt_oracle, IdsOfTheEncoderCases) {
    const Tokenizer tokenizer = Tokenizer::load(testing::oracle_folder() / "parts/tokenizer");
    const ProcessorConfig config =
        ProcessorConfig::load(testing::oracle_folder() / "parts/model-vlm");
    const std::int32_t slot = tokenizer.id_of("<|image_pad|>");
    const std::string vision_end = "<|vision_end|>", end = "<|im_end|>\n<|im_start|>assistant\n";
    int texts = 0, templated = 0;
    for (const auto& folder : testing::oracle_cases("parts", "case-vlm-")) {
        const json meta = read(folder / "case.json");
        if (!meta.contains("texts")) continue;
        SCOPED_TRACE(folder.filename().string());
        const auto file = io::Safetensors::open(folder / "inputs.safetensors");
        const std::vector<std::int64_t> ids = file.integers("input_ids"),
                                        mask = file.integers("attention_mask");
        const bool pictures = file.contains("image_grid_thw");
        const std::vector<std::int64_t> grids =
            pictures ? file.integers("image_grid_thw") : std::vector<std::int64_t>{};
        const auto length = static_cast<std::size_t>(file.at("input_ids").shape[1]);
        std::size_t next_grid = 0;
        for (std::size_t row = 0; row < meta.at("texts").size(); ++row, ++texts) {
            const auto text = meta.at("texts")[row].get<std::string>();
            std::vector<std::int32_t> expected, one_slot_a_picture;  // without padding
            for (std::size_t i = row * length; i < (row + 1) * length; ++i) {
                if (!mask[i]) continue;
                const auto id = static_cast<std::int32_t>(ids[i]);
                if (id != slot || expected.back() != slot) one_slot_a_picture.push_back(id);
                expected.push_back(id);
            }
            EXPECT_EQ(tokenizer.encode(text), one_slot_a_picture) << text;

            ReferenceInputs references;
            std::size_t begin = prompt_text("x", 0).size() - end.size() - 1;
            for (std::size_t at = 0; (at = text.find(vision_end, at)) != std::string::npos;
                 next_grid += 3) {
                begin = at += vision_end.size();
                references.vision.image_grid_thw.push_back(
                    {grids[next_grid], grids[next_grid + 1], grids[next_grid + 2]});
                references.references.emplace_back();
            }
            if (text.size() < begin + end.size()) continue;
            const std::string prompt = text.substr(begin, text.size() - end.size() - begin);
            if (prompt_text(prompt, references.references.size()) != text)
                continue;  // not the pipeline's template
            const PromptInputs inputs = build_prompt(
                tokenizer, config, prompt, std::make_shared<const ReferenceInputs>(references));
            EXPECT_EQ(inputs.input_ids, expected) << text;
            ++templated;
        }
    }
    EXPECT_GE(texts, 5);
    EXPECT_GE(templated, 3);
}

}  // namespace
}  // namespace atelier::model
