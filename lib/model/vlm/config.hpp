#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <vector>

namespace atelier::vlm {

using GridThw = std::array<std::int64_t, 3>;  ///< a picture: frames, patches high, patches wide

struct TextConfig {
    std::int64_t hidden = 0, intermediate = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0, vocabulary = 0;
    float eps = 1e-6f;
    double rope_theta = 0;
    std::array<std::int64_t, 3> mrope_section{};  ///< frequencies of t, h, w; sum = head_dim / 2
};

struct VisionConfig {
    std::int64_t depth = 0, hidden = 0, intermediate = 0, heads = 0, channels = 3, patch = 16, temporal_patch = 2,
                 merge = 2, positions = 0, out_hidden = 0;
    double rope_theta = 10000.0;
    std::vector<std::int64_t> deepstack;  ///< vision blocks whose output is added to text layer 0, 1, …
    std::int64_t head_dim() const { return hidden / heads; }
    std::int64_t patch_elements() const { return channels * temporal_patch * patch * patch; }
    std::int64_t merged() const { return hidden * merge * merge; }
};

/// A Qwen3VLForConditionalGeneration, from its config.json.
struct Config {
    TextConfig text;
    VisionConfig vision;
    std::int32_t image_token = 0;
    bool tied_head = false;
};

/// Reads text_encoder/config.json; rotary settings in both spellings (rope_parameters; rope_theta + rope_scaling).
/// Throws Error(input) naming the file, the key and the found value for another class or an unsupported setting.
Config load_config(const std::filesystem::path& config_json);

}  // namespace atelier::vlm
