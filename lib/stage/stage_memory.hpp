#pragma once

#include <vector>

#include "stage/memory_entries.hpp"

namespace atelier::stage {

/// A stage's memory plan: made before the work begins, said on rank 0, compared with the peak when
/// the manifest is published.
class StageMemory {
  public:
    /// Before anything large is there.
    StageMemory() = default;

    MemoryPlan plan;

    /// Weights and the frozen parts' buffers: for these prompts, and for decoding `decoded` of their
    /// pictures at once (0: none). Returns what the stage's other entries are made from.
    ModelOutline add_model(const Context& context, pipeline::Pipeline& model,
                           const PromptSource& prompts, bool with_negative,
                           std::int64_t decoded);
    /// When everything has been added. `whose`: before the word "memory".
    void say(const Context& context, const std::string& whose = "") const;
    /// Says how the peak compares.
    void compare(const Context& context, const std::string& whose = "") const;
    /// The same, and writes the plan into the manifest.
    void finish(const Context& context, io::Manifest& manifest) const;
};

/// This rank's share of prompts that are worked on one after another.
PromptSource my_prompts(const Context& context, const PromptSource& prompts);

}  // namespace atelier::stage
