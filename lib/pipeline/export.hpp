#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

#include "nn/lora_file.hpp"

namespace atelier::pipeline {

struct ExportRequest {
    std::filesystem::path model;        ///< pipeline directory that the other components come from
    std::filesystem::path transformer;  ///< directory of the weights, or of an adapter to the model's own (a policy, a student)
    std::vector<nn::LoraRequest> loras;  ///< merged into the weights, in order
    std::filesystem::path output;       ///< must not be there
    std::optional<DType> dtype;         ///< of the stored weights; nothing: as they are stored
    std::uint64_t shard_bytes = 5'000'000'000;
    bool copies = false;                ///< the other components copied instead of linked (symbolic links, absolute)
};

/// Publishes a whole pipeline directory, as diffusers' QwenImage21Pipeline.from_pretrained opens it, of one transformer and another
/// model's remaining components. Adapters are merged in fp32. Works on one tensor at a time. Throws Error(usage) when the output is there already, Error(input)
/// when the transformer doesn't fit its config.json.
void export_pipeline(const ExportRequest& request);

/// Publishes the adapter of request.transformer alone, as a directory in a layout that diffusers or PEFT reads.
void export_adapter(const ExportRequest& request, nn::LoraLayout layout);

}  // namespace atelier::pipeline
