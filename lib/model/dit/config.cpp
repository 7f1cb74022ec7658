#include "model/dit/config.hpp"

#include <algorithm>

#include "core/error.hpp"
#include "core/json.hpp"

namespace atelier::dit {
namespace {

using Json = nlohmann::json;

std::int64_t size(const Json& json, const char* key, std::int64_t fallback, const std::string& path) {
    const auto found = json.find(key);
    if (found == json.end() || found->is_null()) return fallback;
    ATELIER_CHECK_INPUT(found->is_number_integer() && found->get<std::int64_t>() > 0 &&
                            found->get<std::int64_t>() < (std::int64_t{1} << 31),
                        "{}: {} must be a positive integer, found {}", path, key, found->dump());
    return found->get<std::int64_t>();
}

}  // namespace

Config load_config(const std::filesystem::path& config_json) {
    const std::string path = config_json.string();
    const Json json = read_json(config_json);
    ATELIER_CHECK_INPUT(json.is_object(), "{} is not a JSON object", path);
    ATELIER_CHECK_INPUT(json.value("_class_name", Json()) == "QwenImage21Transformer2DModel",
                        "{}: _class_name must be QwenImage21Transformer2DModel, found {}", path,
                        json.value("_class_name", Json()).dump());
    for (const auto& [key, value] : json.items()) {
        static const std::array<const char*, 11> known{
            "patch_size",     "in_channels", "out_channels",    "num_layers", "attention_head_dim", "num_attention_heads",
            "context_in_dim", "mlp_ratio",   "axes_dims_rope", "eps",        "causal_condition"};
        // Keys that start with an underscore are the library's own notes.
        const bool fine = key.starts_with("_") || std::find(known.begin(), known.end(), key) != known.end();
        ATELIER_CHECK_INPUT(fine, "{}: unknown key {} = {}: this engine can't tell what it changes", path, key,
                            value.dump());
    }
    Config c;
    const auto patch = size(json, "patch_size", 1, path);
    ATELIER_CHECK_INPUT(patch == 1, "{}: patch_size must be 1, found {}", path, patch);
    c.in_channels = size(json, "in_channels", c.in_channels, path);
    c.out_channels = size(json, "out_channels", c.in_channels, path);
    c.layers = size(json, "num_layers", c.layers, path);
    c.head_dim = size(json, "attention_head_dim", c.head_dim, path);
    c.heads = size(json, "num_attention_heads", c.heads, path);
    c.context_dim = size(json, "context_in_dim", c.context_dim, path);
    c.mlp_ratio = size(json, "mlp_ratio", c.mlp_ratio, path);
    if (const auto axes = json.find("axes_dims_rope"); axes != json.end()) {
        ATELIER_CHECK_INPUT(axes->is_array() && axes->size() == 3, "{}: axes_dims_rope must be three sizes, found {}",
                            path, axes->dump());
        for (std::size_t i = 0; i < 3; ++i) {
            ATELIER_CHECK_INPUT((*axes)[i].is_number_integer(), "{}: axes_dims_rope holds {}", path, (*axes)[i].dump());
            c.rope_dims[i] = (*axes)[i].get<std::int64_t>();
            ATELIER_CHECK_INPUT(c.rope_dims[i] >= 0 && c.rope_dims[i] <= c.head_dim && c.rope_dims[i] % 2 == 0,
                                "{}: axes_dims_rope must be even and no more than attention_head_dim = {}, found {}", path, c.head_dim,
                                axes->dump());
        }
    }
    ATELIER_CHECK_INPUT(c.rope_dims[0] + c.rope_dims[1] + c.rope_dims[2] == c.head_dim,
                        "{}: axes_dims_rope must add up to attention_head_dim = {}, found {} + {} + {}", path, c.head_dim,
                        c.rope_dims[0], c.rope_dims[1], c.rope_dims[2]);
    if (const auto eps = json.find("eps"); eps != json.end()) {
        ATELIER_CHECK_INPUT(eps->is_number() && eps->get<double>() > 0 && eps->get<double>() < 1, "{}: eps must lie within 0 and 1, found {}", path,
                            eps->dump());
        c.eps = eps->get<float>();
    }
    if (const auto causal = json.find("causal_condition"); causal != json.end()) {
        ATELIER_CHECK_INPUT(causal->is_boolean(), "{}: causal_condition must be true or false, found {}", path,
                            causal->dump());
        c.causal_condition = causal->get<bool>();
    }
    return c;
}

}  // namespace atelier::dit
