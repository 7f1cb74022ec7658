#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "io/image/png.hpp"
#include "io/safetensors.hpp"
#include "model/processor/image_inputs.hpp"
#include "oracle_folder.hpp"

namespace atelier::model {
namespace {

using io::Image;
using nlohmann::json;

constexpr double float_bound = 1e-6;  // the cases' own "floats 1e-6"

json read(const std::filesystem::path& path) {
    std::ifstream stream(path);
    return json::parse(stream);
}

Image image_of(const io::Safetensors& file, const std::string& name) {
    const io::StoredTensor& stored = file.at(name);
    Image image(static_cast<int>(stored.shape[1]), static_cast<int>(stored.shape[0]),
                static_cast<int>(stored.shape[2]));
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(stored.data);
    std::copy_n(bytes, image.pixels.size(), image.pixels.begin());
    return image;
}

constexpr PassOrder orders[] = {PassOrder::horizontal_first, PassOrder::pillow_13};

/// The bytes that Pillow gives with this pass order; the file has two pictures only where they
/// differ.
Image resized_of(const io::Safetensors& file, const std::string& name, PassOrder order) {
    const std::string classic = name + "_horizontal_first";
    return image_of(
        file, order == PassOrder::horizontal_first && file.contains(classic) ? classic : name);
}

void expect_same(const Image& found, const Image& expected, const std::string& what) {
    ASSERT_EQ(found.width, expected.width) << what;
    ASSERT_EQ(found.height, expected.height) << what;
    ASSERT_EQ(found.channels, expected.channels) << what;
    const auto differs =
        std::mismatch(found.pixels.begin(), found.pixels.end(), expected.pixels.begin());
    EXPECT_EQ(differs.first, found.pixels.end())
        << what << ": first differing byte at " << differs.first - found.pixels.begin();
}

/// The first `expected.size()` values of `found`.
void expect_near(const std::vector<float>& found, const std::vector<float>& expected,
                 const std::string& what) {
    ASSERT_GE(found.size(), expected.size()) << what;
    double worst = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
        worst = std::max(worst, std::abs(static_cast<double>(found[i]) - expected[i]));
    }
    EXPECT_LE(worst, float_bound) << what;
}

/// As the model directories configure it, with the limits of the case.
ProcessorConfig config_of(const json& limits) {
    ProcessorConfig config = ProcessorConfig::load(testing::oracle_folder() / "parts/model-vlm");
    config.min_pixels = limits.at("shortest_edge").get<std::int64_t>();
    config.max_pixels = limits.at("longest_edge").get<std::int64_t>();
    return config;
}

void check_vision(const ProcessorConfig& config, const Image& rgb, const io::Safetensors& outputs,
                  const std::string& prefix) {
    for (PassOrder order : orders) {
        expect_same(resize_for_vision(config, rgb, order),
                    resized_of(outputs, prefix + ".resized_u8", order), prefix);
    }
    // Patches are of the picture that Pillow made there, whatever its pass order.
    VisionInputs inputs;
    append_patches(config, image_of(outputs, prefix + ".resized_u8"), inputs);
    expect_near(inputs.pixel_values, outputs.floats(prefix + ".pixel_values"),
                prefix + ".pixel_values");
    EXPECT_EQ(inputs.patch_elements, outputs.at(prefix + ".pixel_values").shape[1]);
    EXPECT_EQ(
        std::vector<std::int64_t>(inputs.image_grid_thw[0].begin(), inputs.image_grid_thw[0].end()),
        outputs.integers(prefix + ".image_grid_thw"));
}

TEST(preprocess_oracle, PicturesByteForByte) {
    int pictures = 0;
    for (const auto& folder : testing::oracle_cases("parts", "case-preprocess-")) {
        SCOPED_TRACE(folder.filename().string());
        const json meta = read(folder / "case.json");
        const auto inputs = io::Safetensors::open(folder / "inputs.safetensors");
        const auto outputs = io::Safetensors::open(folder / "outputs.safetensors");
        const Image image = image_of(inputs, "image");
        const ProcessorConfig config = config_of(meta.at("size_limits"));
        if (std::filesystem::exists(folder / "input.png")) {
            expect_same(io::read_png(folder / "input.png"), image, "read_png");
        }
        if (outputs.contains("qwen.resized_u8")) check_vision(config, image, outputs, "qwen");
        if (outputs.contains("vae.resized_u8")) {
            const PictureSize size = reference_size(
                {image.width, image.height}, meta.at("output_resolution").get<std::int64_t>());
            for (PassOrder order : orders) {
                expect_same(resize(with_alpha(image), static_cast<int>(size.width),
                                   static_cast<int>(size.height), ResizeFilter::lanczos, order),
                            resized_of(outputs, "vae.resized_u8", order), "vae.resized_u8");
            }
            const Image resized = image_of(outputs, "vae.resized_u8");
            expect_near(vae_tensor(resized), outputs.floats("vae.tensor"), "vae.tensor");
            expect_same(over_white(resized), image_of(outputs, "white_u8"), "white_u8");
            check_vision(config, image_of(outputs, "white_u8"), outputs, "condition");
        }
        ++pictures;
    }
    EXPECT_GE(pictures, 3);
}

TEST(preprocess_oracle, Sizes) {
    const json table = read(testing::oracle_folder() / "parts/case-sizes/sizes.json");
    for (const json& row : table.at("smart_resize")) {
        const PictureSize found =
            smart_resize({row.at("width"), row.at("height")}, row.at("factor"),
                         row.at("min_pixels"), row.at("max_pixels"));
        EXPECT_EQ(json::array({found.height, found.width}), row.at("resized")) << row;
    }
    for (const json& row : table.at("calculate_dimensions")) {
        const auto resolution = row.at("output_resolution").get<std::int64_t>();
        const PictureSize found =
            calculate_dimensions(resolution * resolution,
                                 row.at("width").get<double>() / row.at("height").get<double>());
        EXPECT_EQ(json::array({found.width, found.height}), row.at("calculated")) << row;
    }
    EXPECT_GT(table.at("smart_resize").size(), 50u);
    EXPECT_GT(table.at("calculate_dimensions").size(), 50u);
}

}  // namespace
}  // namespace atelier::model
