#pragma once

#include <cstdint>
#include <string>

#include "stage/context.hpp"

namespace atelier::stage {

/// What is asked of a configuration's memory.
struct MemoryQuestion {
    int ranks = 1;
    std::size_t device_memory = 0;    ///< of a rank; 0: nothing is compared
    std::int64_t prompt_tokens = 256; ///< of a prompt, its template not counted
    std::int64_t references = 1;      ///< pictures of an edit prompt, each of sampling.output_resolution squared
};

/// "141GiB", "80 GB", "512MiB". Throws Error(usage).
std::size_t parse_bytes(const std::string& text);

/// For every stage and task: bytes of a rank by kind, with activations kept and with recompute, whether that fits, and the largest
/// micro-batch that does. Reads the model's config.json files, no weight; measures the buffers that the stages take, as the stages
/// measure them. Everything is fp32.
std::string describe_memory(const Context& context, const MemoryQuestion& question);

}  // namespace atelier::stage
