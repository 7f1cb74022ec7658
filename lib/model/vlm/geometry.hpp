#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "core/tensor.hpp"
#include "model/vlm/config.hpp"

// Where tokens and patches stand: rotary angles and the vision tower's position table. Angles are computed in single precision, as
// the model defines them.
namespace atelier::vlm {

constexpr float vision_eps = 1e-6f;  ///< of the vision tower's norms: in the class, not in its config

/// Interleaved M-RoPE: cosine and sine [tokens, head_dim / 2] of positions on the axes t, h, w.
void text_rotation(const TextConfig& config, std::span<const std::array<std::int64_t, 3>> positions, float* cosine, float* sine);

/// cosine and sine [patches, head_dim / 2] of the patches of all pictures, in merge order.
void vision_rotation(const VisionConfig& config, std::span<const GridThw> grids, float* cosine, float* sine);

/// Up to four entries of the position table that a patch lies between, with their shares (bilinear, corners aligned).
struct PositionCorners {
    std::array<std::int64_t, 4> row{};
    std::array<float, 4> share{};
};
/// Of patch k in merge order (block row, block column, row in block, column in block).
PositionCorners position_corners(const VisionConfig& config, const GridThw& grid, std::int64_t k);
/// The same of the patches of all pictures in merge order, as ops::add_blend_of_rows takes it.
struct PositionBlend {
    std::vector<std::int32_t> row;  ///< [patches, 4]
    std::vector<float> share;       ///< [patches, 4]
};
PositionBlend position_blend(const VisionConfig& config, std::span<const GridThw> grids);

/// Throws Error(input) when pixel values and grids disagree, or hold more than `max_patches`.
void check_patches(const VisionConfig& config, const Tensor& pixel_values, std::span<const GridThw> grids, std::int64_t max_patches);

}  // namespace atelier::vlm
