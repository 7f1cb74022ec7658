#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/dit/config.hpp"

namespace atelier::dit {

/// A picture in latent tokens.
struct Grid {
    std::int64_t height = 0, width = 0;
    std::int64_t tokens() const { return height * width; }
    bool operator==(const Grid&) const = default;
};

/// A prompt's place among the prefix tokens of a layout.
struct PromptRange {
    std::int64_t first = 0, tokens = 0;
};

/// Where the tokens of prompts that run together come from, what they see and where they stand. Each prompt is blind to the others.
///
/// A prompt's prefix is the encoder's sequence with each image slot replaced by 2 x 2 tokens of the packed reference
/// latents (row-major over the picture); the target's tokens follow. Text is causal, each picture sees all before it
/// and all of itself.
struct Layout {
    std::int64_t encoder_tokens = 0, reference_tokens = 0;  ///< of all prompts
    std::int64_t target_tokens = 0;                         ///< of one target
    std::vector<PromptRange> prompts;
    /// Per prefix token: encoder row e >= 0, or reference latent r as -1 - r.
    std::vector<std::int32_t> source;
    std::vector<std::int32_t> limit;       ///< per prefix token: keys [0, limit) of its prompt are visible
    std::vector<std::uint8_t> valid;       ///< per prefix token, 0 = padding; empty: all valid
    std::vector<float> cosine, sine;       ///< [prefix + prompts x target, head_dim / 2]
    std::int64_t prefix_tokens() const { return static_cast<std::int64_t>(source.size()); }
    std::int64_t prompt_count() const { return static_cast<std::int64_t>(prompts.size()); }
};

/// `image_slot`: one byte per encoder token, not 0 at the slots of references, in order; `references` their grids.
/// `valid`: one byte per encoder token (right padding), or empty. Throws Error(input) when slots and grids disagree.
Layout make_layout(const Config& config, std::span<const std::uint8_t> image_slot, std::span<const Grid> references,
                   Grid target, std::span<const std::uint8_t> valid = {});

/// The prompts of all, in order. Their encoder states and reference latents follow one another in the same order. Throws Error(internal)
/// unless all targets have the same number of tokens.
Layout join(std::span<const Layout> layouts);

}  // namespace atelier::dit
