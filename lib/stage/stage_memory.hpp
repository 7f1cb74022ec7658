#pragma once

#include <vector>

#include "core/memory.hpp"
#include "stage/context.hpp"

namespace atelier::stage {

/// A stage's memory plan: made before the work begins, said on rank 0, compared with the peak when
/// the manifest is published.
class StageMemory {
  public:
    /// Before anything large is there.
    StageMemory() = default;

    MemoryPlan plan;

    /// Weights and the frozen parts' buffers: for these prompts, and for decoding `decoded` pictures
    /// at once (0: none). Returns what the prompts look like to the transformer, without numbers.
    std::vector<EncodedPair> add_model(const Context& context, pipeline::Pipeline& model,
                                       const std::vector<const Prompt*>& prompts,
                                       bool with_negative, std::int64_t decoded);
    /// When everything has been added. `whose`: before the word "memory".
    void say(const Context& context, const std::string& whose = "") const;
    /// Says how the peak compares.
    void compare(const Context& context, const std::string& whose = "") const;
    /// The same, and writes the plan into the manifest.
    void finish(const Context& context, io::Manifest& manifest) const;
};

/// This rank's share of prompts that are worked on one after another.
std::vector<const Prompt*> my_prompts(const Context& context, const std::vector<Prompt>& prompts);

/// Bytes of one sample of a trajectory shard: `steps` states before and after a step, `velocities`
/// teacher velocities, final latents and picture.
std::size_t sample_bytes(dit::Grid target, std::int64_t channels, std::int64_t steps,
                         std::int64_t velocities);
/// Bytes of its picture, and of one as the configuration asks for them.
std::size_t picture_bytes(dit::Grid target);
std::size_t asked_picture_bytes(const config::Config& config);

}  // namespace atelier::stage
