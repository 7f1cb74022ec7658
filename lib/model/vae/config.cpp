#include "model/vae/config.hpp"

#include <cmath>
#include <limits>

#include "core/error.hpp"
#include "model/tokenizer/json_file.hpp"

namespace atelier::vae {
namespace {

constexpr std::int64_t largest_size = std::int64_t{1} << 31;

std::int64_t size(const model::JsonNode& node, const char* key) {
    const auto value = node.at(key);
    ATELIER_CHECK_INPUT(value.integer() > 0 && value.integer() < largest_size, "{} must be a positive size, found {}", value.place(), value.found());
    return value.integer();
}

std::vector<float> numbers(const model::JsonNode& node, const char* key, std::int64_t count) {
    const auto list = node.at(key);
    ATELIER_CHECK_INPUT(list.value().is_array() && static_cast<std::int64_t>(list.size()) == count,
                        "{} must hold z_dim = {} numbers, found {}", list.place(), count, list.found());
    std::vector<float> values;
    for (std::size_t i = 0; i < list.size(); ++i) {
        ATELIER_CHECK_INPUT(std::abs(list[i].number()) <= std::numeric_limits<float>::max(), "{} holds {}, which no float is", list.place(),
                            list[i].found());
        values.push_back(static_cast<float>(list[i].number()));
    }
    return values;
}

}  // namespace

Config load_config(const std::filesystem::path& config_json) {
    const auto json = read_json(config_json);
    const model::JsonNode root(json, config_json.string() + ": ");
    ATELIER_CHECK_INPUT(root.at("_class_name").text() == "AutoencoderKLQwenImage21",
                        "{} must be AutoencoderKLQwenImage21, found {}", root.at("_class_name").place(),
                        root.at("_class_name").found());
    root.only_known({"_class_name", "_diffusers_version", "_name_or_path", "base_dim", "decoder_base_dim", "z_dim", "dim_mult",
                     "num_res_blocks", "attn_scales", "temperal_downsample", "dropout", "latents_mean", "latents_std",
                     "is_residual", "in_channels", "out_channels", "patch_size", "scale_factor_temporal",
                     "scale_factor_spatial"});
    root.require("is_residual", {true});
    root.require("patch_size", {1});
    root.require("attn_scales", {nlohmann::json::array()});
    Config c;
    c.base = size(root, "base_dim");
    c.decoder_base = root.has("decoder_base_dim") ? size(root, "decoder_base_dim") : c.base;
    c.z = size(root, "z_dim");
    c.channels = size(root, "in_channels");
    ATELIER_CHECK_INPUT(size(root, "out_channels") == c.channels, "{} must equal in_channels = {}, found {}",
                        root.at("out_channels").place(), c.channels, root.at("out_channels").found());
    c.residual_blocks = size(root, "num_res_blocks");
    const auto multipliers = root.at("dim_mult");
    for (std::size_t i = 0; i < multipliers.size(); ++i) {
        ATELIER_CHECK_INPUT(multipliers[i].integer() > 0 && multipliers[i].integer() < largest_size, "{} must hold positive sizes, found {}", multipliers.place(),
                            multipliers.found());
        c.multipliers.push_back(multipliers[i].integer());
    }
    ATELIER_CHECK_INPUT(c.multipliers.size() >= 2 && c.multipliers.size() <= 8, "{} must hold 2 to 8 levels, found {}",
                        multipliers.place(), multipliers.found());
    const auto temporal = root.at("temperal_downsample");
    ATELIER_CHECK_INPUT(temporal.size() == c.multipliers.size() - 1, "{} must hold {} values, found {}", temporal.place(),
                        c.multipliers.size() - 1, temporal.found());
    for (std::size_t i = 0; i < temporal.size(); ++i) c.temporal_down.push_back(temporal[i].flag());
    if (root.has("scale_factor_spatial"))
        ATELIER_CHECK_INPUT(root.at("scale_factor_spatial").integer() == c.factor(), "{} must be {} for {} levels, found {}",
                            root.at("scale_factor_spatial").place(), c.factor(), c.multipliers.size(),
                            root.at("scale_factor_spatial").found());
    c.latents_mean = numbers(root, "latents_mean", c.z);
    c.latents_std = numbers(root, "latents_std", c.z);
    for (float s : c.latents_std)
        ATELIER_CHECK_INPUT(s > 0, "{} must be positive, found {}", root.at("latents_std").place(), s);
    return c;
}

}  // namespace atelier::vae
