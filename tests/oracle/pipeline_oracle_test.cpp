// Whole pictures against diffusers' pipeline: prompt embeddings, latents after every step, the picture.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "io/image/png.hpp"
#include "io/safetensors.hpp"
#include "../ops/test_device.hpp"
#include "oracle_folder.hpp"
#include "pipeline/generate.hpp"

namespace atelier::pipeline {
namespace {

namespace fs = std::filesystem;

// The cases are float32 runs of diffusers and state no error of their own: prompt embeddings differ by rounding; a step's
// velocity by up to 8 times the 4e-6 that float32 shows in the transformer's cases, and steps add up.
constexpr double embedding_tolerance = 5e-5;  // over the RMS
constexpr double latent_tolerance = 3e-4;     // over the RMS, after the last step
constexpr double picture_tolerance = 2e-3;    // of a range of 1

double relative_error(std::span<const float> found, std::span<const float> expected) {
    EXPECT_EQ(found.size(), expected.size());
    double square = 0, worst = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
        square += double(expected[i]) * expected[i];
        worst = std::max(worst, std::abs(double(found[i]) - expected[i]));
    }
    return worst / std::sqrt(square / static_cast<double>(expected.size()));
}

void check_case(Pipeline& model, const fs::path& folder) {
    SCOPED_TRACE(folder.filename().string());
    const auto info = nlohmann::json::parse(std::ifstream(folder / "case.json"));
    const auto in = io::Safetensors::open(folder / "inputs.safetensors");
    const auto out = io::Safetensors::open(folder / "outputs.safetensors");
    std::vector<io::Image> images;
    for (const auto& name : info["images"]) images.push_back(io::read_png(folder / name.get<std::string>()));
    const auto resolution = info["output_resolution"].get<std::int64_t>();
    const auto size = model::output_size(images.empty() ? info["height"].get<std::int64_t>() : 0,
                                         images.empty() ? info["width"].get<std::int64_t>() : 0, resolution, images);
    EXPECT_EQ(size.height, info["height"].get<std::int64_t>());
    EXPECT_EQ(size.width, info["width"].get<std::int64_t>());
    const auto references = model.prepare(images, resolution);
    const auto conditional = model.encode(info["prompt"].get<std::string>(), references);
    EXPECT_LT(relative_error(conditional.states, out.floats("prompt_embeds")), embedding_tolerance);

    GenerateRequest r;
    EncodedPrompt unconditional;
    r.conditional = {&conditional};
    r.guidance.scale = info["guidance_scale"].get<double>();
    if (!info["negative"].is_null() && !r.guidance.is_off()) {
        unconditional = model.encode(info["negative"].get<std::string>(), references);
        r.unconditional = {&unconditional};
    }
    r.target = {size.height / model::pixels_per_latent, size.width / model::pixels_per_latent};
    r.schedule = model.schedule(info["steps"].get<int>(), r.target.tokens());
    auto latents = in.floats("latents");
    const auto by_step = out.floats("latents_by_step");
    int steps = 0;
    Workspace workspace("sampling");
    generate_latents(model.dit(), model.dit_weights(), r, latents, workspace, [&](int step, std::span<const float> now) {
        EXPECT_LT(relative_error(now, std::span(by_step).subspan(step * now.size(), now.size())), latent_tolerance) << step;
        ++steps;
    });
    EXPECT_EQ(steps, info["steps"].get<int>());
    const std::int64_t channels = model.vae().config().channels, pixels = size.height * size.width;
    std::vector<float> picture(pixels * channels);
    model.codec().decode(Tensor::of(latents.data(), {1, r.target.tokens(), model.dit().config().in_channels}), r.target.height,
                         r.target.width, Tensor::of(picture.data(), {1, size.height, size.width, channels}));
    const auto expected = out.floats("picture");  // [1, C, H, W] in [0, 1]
    double worst = 0;
    for (std::int64_t p = 0; p < pixels; ++p)
        for (std::int64_t k = 0; k < channels; ++k)
            worst = std::max(worst, std::abs(picture[p * channels + k] / 2.0 + 0.5 - expected[k * pixels + p]));
    EXPECT_LT(worst, picture_tolerance);
}

TEST(pipeline_oracle, EndToEnd) {
    Pipeline model(testing::oracle_folder() / "pipeline" / "pipeline", {}, testing::test_device());
    const auto cases = testing::oracle_cases("pipeline", "case-e2e-");
    ASSERT_GE(cases.size(), 6u);
    for (const auto& folder : cases) check_case(model, folder);
}

}  // namespace
}  // namespace atelier::pipeline
