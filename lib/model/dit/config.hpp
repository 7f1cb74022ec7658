#pragma once

#include <array>
#include <cstdint>
#include <filesystem>

namespace atelier::dit {

/// Sizes of a QwenImage21Transformer2DModel, from its config.json.
struct Config {
    std::int64_t in_channels = 64, out_channels = 64, layers = 32, head_dim = 128, heads = 32;
    std::int64_t context_dim = 4096, mlp_ratio = 3;
    std::array<std::int64_t, 3> rope_dims{16, 56, 56};  ///< frame, height, width; sum = head_dim
    float eps = 1e-6f;
    bool causal_condition = true;  ///< prefix modulated from t = 0, else from the sample's t

    std::int64_t width() const { return heads * head_dim; }
    std::int64_t mlp_width() const { return width() * mlp_ratio; }
};

/// Reads transformer/config.json. Throws Error(input) naming the file, the key, the expected and the found for
/// another class, an unknown key, or a value that is not supported.
Config load_config(const std::filesystem::path& config_json);

}  // namespace atelier::dit
