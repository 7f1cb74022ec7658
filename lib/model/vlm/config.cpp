#include "model/vlm/config.hpp"

#include <numeric>

#include "core/error.hpp"
#include "model/tokenizer/json_file.hpp"

namespace atelier::vlm {
namespace {

using model::JsonNode;

std::int64_t size(const JsonNode& node, const char* key) {
    const JsonNode value = node.at(key);
    const std::int64_t n = value.integer();
    ATELIER_CHECK_INPUT(n > 0 && n < (std::int64_t{1} << 31), "{} must be a positive size, found {}", value.place(), n);
    return n;
}

double number_or(const JsonNode& node, const char* key, double otherwise) {
    return node.has(key) ? node.at(key).number() : otherwise;
}

void read_rope(const JsonNode& text, TextConfig& c) {
    // New files hold rope_parameters; public checkpoints rope_theta beside rope_scaling.
    const char* key = text.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
    const JsonNode rope = text.at(key);
    rope.require("rope_type", {"default"});
    rope.require("type", {"default", "mrope"});
    rope.require("mrope_interleaved", {true});
    const JsonNode theta = rope.has("rope_theta") ? rope.at("rope_theta") : text.at("rope_theta");
    c.rope_theta = theta.number();
    ATELIER_CHECK_INPUT(c.rope_theta > 0, "{} must be positive, found {}", theta.place(), theta.found());
    const JsonNode section = rope.at("mrope_section");
    ATELIER_CHECK_INPUT(section.value().is_array() && section.size() == 3, "{} must be three sizes, found {}",
                        section.place(), section.found());
    for (std::size_t i = 0; i < 3; ++i) {
        c.mrope_section[i] = section[i].integer();
        ATELIER_CHECK_INPUT(c.mrope_section[i] >= 0 && c.mrope_section[i] <= c.head_dim, "{} must hold sizes up to head_dim = {}, found {}",
                            section.place(), c.head_dim, section.found());
    }
    ATELIER_CHECK_INPUT(std::accumulate(c.mrope_section.begin(), c.mrope_section.end(), std::int64_t{0}) == c.head_dim / 2,
                        "{} must add up to head_dim / 2 = {}, found {}", section.place(), c.head_dim / 2, section.found());
}

}  // namespace

Config load_config(const std::filesystem::path& config_json) {
    const auto json = read_json(config_json);
    const JsonNode root(json, config_json.string() + ": ");
    root.require("model_type", {"qwen3_vl"});
    Config c;
    const JsonNode image_token = root.at("image_token_id");
    ATELIER_CHECK_INPUT(image_token.integer() >= 0 && image_token.integer() <= INT32_MAX, "{} must be a token, found {}", image_token.place(),
                        image_token.found());
    c.image_token = static_cast<std::int32_t>(image_token.integer());
    c.tied_head = root.flag_or("tie_word_embeddings", false);

    const JsonNode text = root.at("text_config");
    text.require("hidden_act", {"silu"});
    text.require("attention_bias", {false});
    c.text.hidden = size(text, "hidden_size");
    c.text.intermediate = size(text, "intermediate_size");
    c.text.layers = size(text, "num_hidden_layers");
    c.text.heads = size(text, "num_attention_heads");
    c.text.kv_heads = size(text, "num_key_value_heads");
    c.text.head_dim = text.has("head_dim") ? size(text, "head_dim") : c.text.hidden / c.text.heads;
    c.text.vocabulary = size(text, "vocab_size");
    const double eps = number_or(text, "rms_norm_eps", 1e-6);
    ATELIER_CHECK_INPUT(eps > 0 && eps < 1, "{}: rms_norm_eps must lie within 0 and 1, found {}", text.place(), eps);
    c.text.eps = static_cast<float>(eps);
    ATELIER_CHECK_INPUT(c.text.heads % c.text.kv_heads == 0, "{}: {} heads cannot share {} key heads", text.place(),
                        c.text.heads, c.text.kv_heads);
    read_rope(text, c.text);

    const JsonNode vision = root.at("vision_config");
    vision.require("hidden_act", {"gelu_pytorch_tanh"});
    c.vision.depth = size(vision, "depth");
    c.vision.hidden = size(vision, "hidden_size");
    c.vision.intermediate = size(vision, "intermediate_size");
    c.vision.heads = size(vision, "num_heads");
    c.vision.channels = size(vision, "in_channels");
    c.vision.patch = size(vision, "patch_size");
    c.vision.temporal_patch = size(vision, "temporal_patch_size");
    c.vision.merge = size(vision, "spatial_merge_size");
    c.vision.positions = size(vision, "num_position_embeddings");
    c.vision.out_hidden = size(vision, "out_hidden_size");
    if (vision.has("rope_parameters")) {
        const JsonNode rope = vision.at("rope_parameters");
        rope.require("rope_type", {"axial"});
        c.vision.rope_theta = number_or(rope, "rope_theta", c.vision.rope_theta);
    }
    const JsonNode deepstack = vision.at("deepstack_visual_indexes");
    for (std::size_t i = 0; i < deepstack.size(); ++i) {
        const std::int64_t block = deepstack[i].integer();
        ATELIER_CHECK_INPUT(block >= 0 && block < c.vision.depth, "{} names block {} of {}", deepstack.place(), block,
                            c.vision.depth);
        c.vision.deepstack.push_back(block);
    }
    ATELIER_CHECK_INPUT(static_cast<std::int64_t>(c.vision.deepstack.size()) <= c.text.layers,
                        "{}: more features than text layers", deepstack.place());
    ATELIER_CHECK_INPUT(c.vision.out_hidden == c.text.hidden, "{}: out_hidden_size {} is not the text's hidden_size {}",
                        vision.place(), c.vision.out_hidden, c.text.hidden);
    ATELIER_CHECK_INPUT(c.vision.hidden % c.vision.heads == 0 && c.vision.head_dim() % 4 == 0,
                        "{}: {} heads of hidden_size {} leave no rows and columns to rotate", vision.place(),
                        c.vision.heads, c.vision.hidden);
    return c;
}

}  // namespace atelier::vlm
