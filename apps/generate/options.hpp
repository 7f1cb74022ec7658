#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/tensor.hpp"
#include "nn/lora_file.hpp"

namespace atelier::generate {

/// The command line of atelier-generate.
struct Options {
    std::filesystem::path model, transformer;
    std::vector<nn::LoraRequest> loras;  ///< merged into the transformer, in order
    Device device = Device::cpu;
    std::string prompt, negative;
    bool has_prompt = false, has_negative = false;
    double guidance_scale = 1.0;
    std::vector<std::filesystem::path> images;
    std::int64_t height = 0, width = 0;  ///< pixels; 0: from the references or output_resolution
    std::int64_t output_resolution = 1024;
    int steps = 0;                       ///< 0: the model's sample_sigmas, else 40
    std::uint64_t seed = 0;
    int threads = 0;
    std::optional<std::filesystem::path> latents, output_latents;
    std::filesystem::path output = "output.png";
    std::optional<std::filesystem::path> prompts, output_dir;
};

/// nothing: the help text was asked for and printed. Throws Error(usage).
std::optional<Options> parse_options(int argc, char** argv);

}  // namespace atelier::generate
