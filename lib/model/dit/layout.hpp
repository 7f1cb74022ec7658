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
};

/// Where the tokens of one prompt come from, what they see and where they stand.
///
/// The prefix is the encoder's sequence with each image slot replaced by 2 x 2 tokens of the packed reference
/// latents (row-major over the picture); the target's tokens follow. Text is causal, each picture sees all before it
/// and all of itself.
struct Layout {
    std::int64_t encoder_tokens = 0, reference_tokens = 0, target_tokens = 0;
    /// Per prefix token: encoder row e >= 0, or reference latent r as -1 - r.
    std::vector<std::int32_t> source;
    std::vector<std::int32_t> limit;       ///< per prefix token: keys [0, limit) are visible
    std::vector<std::uint8_t> valid;       ///< per prefix token, 0 = padding; empty: all valid
    std::vector<float> cosine, sine;       ///< [prefix + target, head_dim / 2]
    std::int64_t prefix_tokens() const { return static_cast<std::int64_t>(source.size()); }
};

/// `image_slot`: one byte per encoder token, not 0 at the slots of references, in order; `references` their grids.
/// `valid`: one byte per encoder token (right padding), or empty. Throws Error(input) when slots and grids disagree.
Layout make_layout(const Config& config, std::span<const std::uint8_t> image_slot, std::span<const Grid> references,
                   Grid target, std::span<const std::uint8_t> valid = {});

}  // namespace atelier::dit
