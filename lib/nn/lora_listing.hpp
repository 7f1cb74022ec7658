#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "io/safetensors.hpp"
#include "nn/lora.hpp"

namespace atelier::nn {

/// What an adapter's files are called, in diffusers' and in PEFT's layout.
inline constexpr const char* lora_file_name = "pytorch_lora_weights.safetensors";
inline constexpr const char* peft_file_name = "adapter_model.safetensors";
inline constexpr const char* peft_config_name = "adapter_config.json";
/// Of the file's metadata: the configuration as JSON.
inline constexpr const char* lora_metadata_key = "lora_adapter_metadata";
// What stands before a module's name where a pipeline, PEFT and other trainers name it.
inline constexpr std::string_view pipeline_prefix = "transformer.", peft_prefix = "base_model.model.", comfy_prefix = "diffusion_model.";

/// An adapter as its file has it, whatever model it is for.
struct LoraListing {
    struct Module {
        std::string name;  ///< the model's name without ".weight"
        LoraSize size;
        io::StoredTensor a, b;  ///< [rank, in], [out, rank]
    };
    io::Safetensors file;
    std::vector<Module> modules;
    /// Numbers of all A and B.
    std::int64_t parameters() const;
    /// As describe() of the modules' sizes.
    std::string text() const;
};

/// Whether an adapter's file is in the directory.
bool holds_lora(const std::filesystem::path& directory);

/// Reads headers and configuration of an adapter: a file, or a directory that holds one in either layout. Names have one of the prefixes
/// or none, and are pairs of lora_A and lora_B or of lora_down and lora_up. Rank and alpha of a module are, as diffusers 0.42 and PEFT
/// 0.21 take them: those of the configuration, in the file's metadata or in adapter_config.json beside it, where rank_pattern and
/// alpha_pattern (regular expressions for the end of a module's name, the first that matches) go before r and lora_alpha, with
/// alpha sqrt(rank) for rsLoRA; without a configuration the rank of A, and the module's tensor ".alpha" or else alpha = rank.
///
/// Throws Error(input) naming file and tensor for a tensor of another kind, half a pair, a rank that isn't the shape's, a dtype that
/// weights don't have, PEFT's layout without its configuration, ".alpha" beside a configuration, or what changes the result in another
/// way (DoRA, biases).
LoraListing list_lora(const std::filesystem::path& path);

}  // namespace atelier::nn
