#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "core/error.hpp"
#include "core/parallel.hpp"
#include "model/processor/prompt.hpp"

namespace atelier::model {
namespace {

using io::Image;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::filesystem::path toy_processor() {
    return std::filesystem::path(ATELIER_SOURCE_DIR) /
           "tests/oracle/data/pipeline/pipeline/processor";
}

class ConfigFolder : public ::testing::Test {
  protected:
    void SetUp() override {
        folder_ = std::filesystem::temp_directory_path() /
                  ("atelier-processor-" + std::to_string(::getpid()) + "-" +
                   ::testing::UnitTest::GetInstance()->current_test_info()->name());
        std::filesystem::create_directories(folder_);
    }
    void TearDown() override { std::filesystem::remove_all(folder_); }
    void write(const std::string& name, const std::string& text) const {
        std::ofstream(folder_ / name) << text;
    }
    void expect_refused(const std::string& text, const std::vector<std::string>& named) const {
        write("preprocessor_config.json", text);
        try {
            ProcessorConfig::load(folder_);
            FAIL() << "expected an error that names " << named[0];
        } catch (const Error& error) {
            EXPECT_EQ(error.kind(), ErrorKind::input);
            EXPECT_THAT(error.message(), HasSubstr("preprocessor_config.json"));
            for (const std::string& part : named) EXPECT_THAT(error.message(), HasSubstr(part));
        }
    }
    std::filesystem::path folder_;
};

TEST_F(ConfigFolder, ReadsBothSpellingsAndPlaces) {
    write(
        "preprocessor_config.json",
        R"({"min_pixels": 100, "max_pixels": 9000, "patch_size": 16, "merge_size": 4, "resample": 1, "image_mean": [0, 0.5, 1]})");
    ProcessorConfig config = ProcessorConfig::load(folder_);
    EXPECT_EQ(config.min_pixels, 100);
    EXPECT_EQ(config.max_pixels, 9000);
    EXPECT_EQ(config.merge_size, 4);
    EXPECT_EQ(config.filter, ResizeFilter::lanczos);
    EXPECT_THAT(config.mean, ElementsAre(0, 0.5, 1));
    EXPECT_EQ(config.patch_elements(), 3 * 2 * 16 * 16);

    write("processor_config.json",
          R"({"processor_class": "Qwen3VLProcessor"})");  // says nothing: the other one counts
    EXPECT_EQ(ProcessorConfig::load(folder_).max_pixels, 9000);
    write(
        "processor_config.json",
        R"({"image_processor": {"size": {"shortest_edge": 7, "longest_edge": 8}}, "video_processor": {"fps": 2}})");
    config = ProcessorConfig::load(folder_);
    EXPECT_EQ(config.min_pixels, 7);
    EXPECT_EQ(config.max_pixels, 8);
}

TEST_F(ConfigFolder, RefusesWhatItDoesNotKnow) {
    expect_refused(R"({"do_resize": false})", {"do_resize", "false"});
    expect_refused(R"({"do_center_crop": true})", {"do_center_crop", "true"});
    expect_refused(R"({"image_processor_type": "CLIPImageProcessor"})",
                   {"image_processor_type", "CLIPImageProcessor"});
    expect_refused(R"({"resample": 5})", {"resample", "5"});
    expect_refused(R"({"patch_size": "16"})", {"patch_size", "\"16\""});
    expect_refused(R"({"merge_size": 0})", {"merge_size", "0"});
    expect_refused(R"({"image_std": [0.5, 0.5]})", {"image_std", "[0.5,0.5]"});
    expect_refused(R"({"image_std": [0.5, 0.5, 0]})", {"image_std", "0"});
    expect_refused(R"({"size": {"height": 224}})", {"size.height", "224"});
    expect_refused(R"({"size": {"shortest_edge": 10, "longest_edge": 5}})", {"size", "10", "5"});
    expect_refused(R"({"patch_size": 16)", {"JSON"});
    std::filesystem::remove(folder_ / "preprocessor_config.json");
    EXPECT_THROW(ProcessorConfig::load(folder_), Error);
}

TEST(Resize, KeepsFlatColoursAndSizes) {
    const Image flat(31, 17, 3, 93);
    for (ResizeFilter filter :
         {ResizeFilter::bilinear, ResizeFilter::bicubic, ResizeFilter::lanczos}) {
        EXPECT_EQ(resize(flat, 8, 40, filter, PassOrder::horizontal_first), Image(8, 40, 3, 93));
    }
    Image clear(2, 2, 4, 0);
    clear.at(0, 0)[0] = 50;
    EXPECT_EQ(resize(clear, 2, 2, ResizeFilter::lanczos, PassOrder::horizontal_first),
              clear);  // no resize: colour under alpha 0 stays
    EXPECT_EQ(resize(clear, 4, 4, ResizeFilter::lanczos, PassOrder::horizontal_first),
              Image(4, 4, 4, 0));
}

TEST(Resize, DoesNotDependOnThreads) {
    Image image(97, 131, 4);
    for (std::size_t i = 0; i < image.pixels.size(); ++i)
        image.pixels[i] = static_cast<std::uint8_t>(i * i % 251);
    const Image one = resize(image, 64, 160, ResizeFilter::lanczos, PassOrder::horizontal_first);
    set_threads(4);
    EXPECT_EQ(resize(image, 64, 160, ResizeFilter::lanczos, PassOrder::horizontal_first), one);
    set_threads(1);
}

TEST(Sizes, HalvesGoToEven) {
    EXPECT_EQ(smart_resize({80, 48}, 32, 1, 1 << 30), (PictureSize{64, 64}));
    EXPECT_EQ(smart_resize({112, 176}, 32, 1, 1 << 30), (PictureSize{128, 192}));
    EXPECT_THROW(smart_resize({2001, 10}, 32, 1, 1 << 30), Error);
    EXPECT_THROW(reference_size({4000, 10}, 64), Error);
    const std::vector<Image> wide{Image(10, 10, 3), Image(200, 100, 3)};
    EXPECT_EQ(output_size(0, 0, 128, {}), (PictureSize{128, 128}));
    EXPECT_EQ(output_size(0, 0, 128, wide), (PictureSize{192, 96}));  // the last one's ratio
    EXPECT_EQ(output_size(100, 0, 128, {}), (PictureSize{128, 96}));
    EXPECT_THROW(output_size(20, 20, 128, {}), Error);
}

TEST(Patches, FollowTheMergeOrder) {
    ProcessorConfig config;
    config.patch_size = 2;
    config.merge_size = 2;
    config.mean = {0, 0, 0};
    config.std = {1, 1, 1};
    config.rescale_factor = 1;
    Image image(8, 4,
                3);  // 4 × 2 patches; red holds the patch's number in row order, green x, blue y
    for (int y = 0; y < 4; ++y) {
        for (int x = 0; x < 8; ++x) {
            image.at(x, y)[0] = static_cast<std::uint8_t>(y / 2 * 4 + x / 2);
            image.at(x, y)[1] = static_cast<std::uint8_t>(x);
            image.at(x, y)[2] = static_cast<std::uint8_t>(y);
        }
    }
    VisionInputs inputs;
    append_patches(config, image, inputs);
    ASSERT_EQ(inputs.patches, 8);
    EXPECT_THAT(inputs.image_grid_thw, ElementsAre(ElementsAre(1, 2, 4)));
    std::vector<float> order;
    for (std::size_t i = 0; i < inputs.pixel_values.size(); i += 24)
        order.push_back(inputs.pixel_values[i]);
    EXPECT_THAT(order, ElementsAre(0, 1, 4, 5, 2, 3, 6, 7));
    EXPECT_THAT(
        std::vector<float>(inputs.pixel_values.begin() + 8, inputs.pixel_values.begin() + 24),
        ElementsAre(0, 1, 0, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0, 1, 1));  // two equal frames of 2 × 2
}

/// Ids as the diffusers pipeline (0.42.1) gave them to its encoder for the tree's toy processor.
TEST(Prompt, HasThePipelinesIds) {
    const Tokenizer tokenizer = Tokenizer::load(toy_processor());
    const ProcessorConfig config = ProcessorConfig::load(toy_processor());
    const PromptInputs plain =
        build_prompt(tokenizer, config, "A red circle left of the blue star");
    EXPECT_THAT(plain.input_ids, ElementsAre(438, 431, 198, 428, 424, 434, 258, 435, 427, 13, 439,
                                             198, 438, 414, 198, 32, 317, 332, 391, 352, 258, 326,
                                             312, 439, 198, 438, 64, 410, 430, 198));
    EXPECT_EQ(plain.drop_idx, 12);
    EXPECT_EQ(plain.images, nullptr);
    EXPECT_THAT(build_prompt(tokenizer, config, "").input_ids,
                ElementsAre(438, 431, 198, 428, 424, 434, 258, 435, 427, 13, 439, 198, 438, 414,
                            198, 220, 439, 198, 438, 64, 410, 430, 198));
    EXPECT_EQ(build_prompt(tokenizer, config, "").input_ids,
              build_prompt(tokenizer, config, " ").input_ids);

    auto images = std::make_shared<ReferenceInputs>();
    images->references.resize(2);
    images->vision.image_grid_thw = {{1, 4, 8}, {1, 4, 2}};
    const PromptInputs edit = build_prompt(tokenizer, config, "put image1 inside image2", images);
    EXPECT_EQ(edit.input_ids,
              (std::vector<std::int32_t>{438, 431, 198, 428, 424, 434, 258, 435, 427, 13,  439,
                                         198, 438, 414, 198, 27,  393, 395, 16,  29,  440, 443,
                                         443, 443, 443, 443, 443, 443, 443, 441, 220, 27,  393,
                                         395, 17,  29,  440, 443, 443, 441, 79,  84,  83,  396,
                                         16,  386, 396, 17,  439, 198, 438, 64,  410, 430, 198}));
    for (std::size_t i = 0; i < edit.input_ids.size(); ++i)
        EXPECT_EQ(edit.image_mask[i], edit.input_ids[i] == 443);
}

TEST(Prompt, RefusesSlotsWithoutPictures) {
    const Tokenizer tokenizer = Tokenizer::load(toy_processor());
    const ProcessorConfig config = ProcessorConfig::load(toy_processor());
    EXPECT_THROW(build_prompt(tokenizer, config, "a <|image_pad|>"), Error);
}

TEST(References, RefuseLimitsThatWouldBreakTheSlots) {
    ProcessorConfig config = ProcessorConfig::load(toy_processor());
    const std::vector<Image> images{Image(50, 40, 3, 9)};
    const ReferenceInputs inputs = prepare_references(config, images, 96);
    EXPECT_EQ(inputs.references[0].picture.channels, 4);
    EXPECT_EQ(static_cast<std::int64_t>(inputs.references[0].vae_input.size()),
              4 * 256 * inputs.references[0].latent_height * inputs.references[0].latent_width);
    const std::vector<PictureSize> sizes{{50, 40}};
    const ReferenceInputs outline = outline_references(config, sizes, 96);
    EXPECT_EQ(outline.references[0].latent_height, inputs.references[0].latent_height);
    EXPECT_EQ(outline.references[0].latent_width, inputs.references[0].latent_width);
    EXPECT_EQ(outline.vision.image_grid_thw, inputs.vision.image_grid_thw);
    EXPECT_EQ(outline.vision.patches, inputs.vision.patches);
    EXPECT_EQ(outline.vision.patch_elements, inputs.vision.patch_elements);
    config.max_pixels = 1024;
    EXPECT_THROW(outline_references(config, sizes, 96), Error);
    try {
        prepare_references(config, images, 96);
        FAIL() << "expected an error";
    } catch (const Error& error) {
        EXPECT_THAT(error.message(), HasSubstr("processor_config.json"));
        EXPECT_THAT(error.message(), HasSubstr("1024"));
    }
}

}  // namespace
}  // namespace atelier::model
