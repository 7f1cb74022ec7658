#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

namespace atelier::vae {

/// Sizes of an AutoencoderKLQwenImage21 (residual shortcuts, one frame), from its config.json.
struct Config {
    std::int64_t base = 96, decoder_base = 96, z = 64, channels = 4, residual_blocks = 2;
    std::vector<std::int64_t> multipliers;   ///< of the base width, level by level
    std::vector<bool> temporal_down;         ///< levels - 1 entries
    std::vector<float> latents_mean, latents_std;
    /// Pixels per latent, each way: 2^(levels - 1).
    std::int64_t factor() const { return std::int64_t{1} << (multipliers.size() - 1); }
};

/// Throws Error(input) naming the file, the key and the found value for another class or an unsupported setting.
Config load_config(const std::filesystem::path& config_json);

}  // namespace atelier::vae
