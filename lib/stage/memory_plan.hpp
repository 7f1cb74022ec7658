#pragma once

#include <cstdint>
#include <string>

#include "stage/context.hpp"

namespace atelier::stage {

/// What is asked of a configuration's memory.
struct MemoryQuestion {
    int ranks = 1;
    std::size_t device_memory = 0;   ///< of a rank; 0: nothing is compared
    std::int64_t prompt_tokens = 0;  ///< of a prompt, its template not counted; 0: the prompt files', 256 where nothing can count them
    std::int64_t references = 1;     ///< with prompt_tokens: pictures of an edit prompt, each of sampling.output_resolution squared
};

/// "141GiB", "80 GB", "512MiB". Throws Error(usage).
std::size_t parse_bytes(const std::string& text);

/// For every stage and task: bytes of a rank by kind, with each value of compute.recompute, whether that fits, and the largest
/// micro-batch that does. Of all sizes of pictures the largest counts. Reads the model's config.json files, its tokenizer and prompt
/// files where they are there, and no weight; the entries are the stages' own (memory_entries.hpp).
std::string describe_memory(const Context& context, const MemoryQuestion& question);

}  // namespace atelier::stage
