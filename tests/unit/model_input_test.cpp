// Model directories that are not as they must be: each refusal names the file, what was expected and what was found.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "io/safetensors.hpp"
#include "pipeline/pipeline.hpp"

namespace atelier {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

class ModelDirectory : public ::testing::Test {
  protected:
    void SetUp() override {
        directory_ = fs::temp_directory_path() / ("atelier-model-" + std::to_string(getpid()));
        fs::remove_all(directory_);
        fs::copy(fs::path(ATELIER_SOURCE_DIR) / "tests/oracle/data/pipeline/pipeline", directory_, fs::copy_options::recursive);
    }
    void TearDown() override { fs::remove_all(directory_); }
    std::string refusal() {
        try {
            pipeline::Pipeline model(directory_);
        } catch (const Error& e) {
            EXPECT_EQ(e.exit_code(), static_cast<int>(ErrorKind::input)) << e.what();
            return e.message();
        }
        return "(no error)";
    }
    /// Changes one key of a JSON file, reads the refusal and puts the file back.
    std::string with(const std::string& file, const Json::json_pointer& key, const Json& value) {
        std::ifstream in(directory_ / file);
        const Json before = Json::parse(in);
        Json changed = before;
        changed[key] = value;
        std::ofstream(directory_ / file) << changed;
        const std::string message = refusal();
        std::ofstream(directory_ / file) << before;
        return message;
    }
    /// Rewrites a component's weights through `change`.
    template <typename Function>
    std::string with_weights(const std::string& file, Function change) {
        const fs::path path = directory_ / file, kept = directory_ / "kept";
        fs::rename(path, kept);
        std::map<std::string, std::pair<std::vector<float>, Shape>> tensors;
        const auto stored = io::Safetensors::open(kept);
        for (const auto& [name, t] : stored.tensors()) tensors[name] = {stored.floats(name), t.shape};
        change(tensors);
        std::vector<io::TensorToWrite> list;
        for (auto& [name, t] : tensors) list.push_back({name, Tensor::of(t.first.data(), t.second), DType::f32});
        io::write_safetensors(path, list);
        const std::string message = refusal();
        fs::rename(kept, path);
        return message;
    }
    fs::path directory_;
};

TEST_F(ModelDirectory, OpensAsItIs) { EXPECT_EQ(refusal(), "(no error)"); }

TEST_F(ModelDirectory, ConfigsThatThisEngineCannotFollow) {
    using P = Json::json_pointer;
    EXPECT_THAT(with("model_index.json", P("/_class_name"), "FluxPipeline"), HasSubstr("must be QwenImage21Pipeline, found \"FluxPipeline\""));
    EXPECT_THAT(with("model_index.json", P("/vae/1"), "AutoencoderKL"), AllOf(HasSubstr("model_index.json"), HasSubstr("AutoencoderKLQwenImage21")));
    EXPECT_THAT(with("transformer/config.json", P("/_class_name"), "Other"), HasSubstr("found \"Other\""));
    EXPECT_THAT(with("transformer/config.json", P("/guidance_embeds"), true), HasSubstr("unknown key guidance_embeds"));
    EXPECT_THAT(with("transformer/config.json", P("/patch_size"), 2), HasSubstr("patch_size must be 1, found 2"));
    EXPECT_THAT(with("transformer/config.json", P("/axes_dims_rope/0"), 6), HasSubstr("add up to attention_head_dim"));
    EXPECT_THAT(with("transformer/config.json", P("/num_layers"), "three"), HasSubstr("num_layers must be a positive integer"));
    EXPECT_THAT(with("transformer/config.json", P("/context_in_dim"), 33), HasSubstr("context_in_dim"));
    EXPECT_THAT(with("text_encoder/config.json", P("/text_config/hidden_act"), "gelu"), HasSubstr("hidden_act"));
    EXPECT_THAT(with("text_encoder/config.json", P("/text_config/rope_parameters/rope_type"), "yarn"), HasSubstr("rope_type"));
    EXPECT_THAT(with("vae/config.json", P("/is_residual"), false), HasSubstr("is_residual"));
    EXPECT_THAT(with("vae/config.json", P("/latents_std/0"), -1.0), HasSubstr("must be positive"));
    EXPECT_THAT(with("vae/config.json", P("/new_option"), 1), HasSubstr("new_option"));
    EXPECT_THAT(with("scheduler/scheduler_config.json", P("/use_karras_sigmas"), true), HasSubstr("use_karras_sigmas"));
}

TEST_F(ModelDirectory, WeightsThatDoNotFit) {
    const std::string file = "transformer/diffusion_pytorch_model.safetensors", name = "transformer_blocks.1.attn.to_k.weight";
    EXPECT_THAT(with_weights(file, [&](auto& t) { t.erase(name); }), AllOf(HasSubstr(file), HasSubstr(name), HasSubstr("is missing")));
    EXPECT_THAT(with_weights(file, [&](auto& t) { t["extra.weight"] = {{1.0f}, {1}}; }), HasSubstr("extra.weight"));
    EXPECT_THAT(with_weights(file, [&](auto& t) { t[name].second = Shape{t[name].second[0] * t[name].second[1]}; }),
                AllOf(HasSubstr(name), HasSubstr("must have shape")));
    EXPECT_THAT(with_weights(file, [&](auto& t) { t[name].first[7] = NAN; }), AllOf(HasSubstr(name), HasSubstr("nan at element 7")));
    EXPECT_THAT(with_weights("vae/diffusion_pytorch_model.safetensors", [&](auto& t) { t.erase("quant_conv.bias"); }), HasSubstr("quant_conv.bias"));
    EXPECT_THAT(with_weights("text_encoder/model.safetensors", [&](auto& t) { t.erase("lm_head.weight"); }), HasSubstr("lm_head.weight"));
    fs::resize_file(directory_ / file, fs::file_size(directory_ / file) - 100);
    EXPECT_THAT(refusal(), AllOf(HasSubstr(file), HasSubstr("truncated")));
    fs::remove(directory_ / file);
    EXPECT_THAT(refusal(), HasSubstr("holds neither"));
}

TEST_F(ModelDirectory, MissingParts) {
    fs::remove(directory_ / "processor/tokenizer.json");
    EXPECT_THAT(refusal(), HasSubstr("tokenizer"));
    fs::remove_all(directory_);
    EXPECT_THAT(refusal(), HasSubstr("is not a directory"));
}

}  // namespace
}  // namespace atelier
