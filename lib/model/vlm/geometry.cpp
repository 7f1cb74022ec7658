#include "model/vlm/geometry.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/error.hpp"

namespace atelier::vlm {
namespace {

/// theta^(-2i/n) in single precision, as the models define their angles; of i = 0 .. n/2 - 1.
std::vector<float> frequencies(double theta, std::int64_t n) {
    std::vector<float> all;
    for (std::int64_t i = 0; i < n / 2; ++i) {
        const float exponent = static_cast<float>(2 * i) / static_cast<float>(n);
        all.push_back(1.0f / static_cast<float>(std::pow(theta, static_cast<double>(exponent))));
    }
    return all;
}

void put_angle(float angle, float* cosine, float* sine) {
    *cosine = static_cast<float>(std::cos(static_cast<double>(angle)));
    *sine = static_cast<float>(std::sin(static_cast<double>(angle)));
}

/// Row and column of patch k.
std::array<std::int64_t, 2> patch_place(const GridThw& grid, std::int64_t merge, std::int64_t k) {
    const std::int64_t in_block = k % (merge * merge), block = k / (merge * merge), across = grid[2] / merge;
    return {block / across * merge + in_block / merge, block % across * merge + in_block % merge};
}

}  // namespace

void text_rotation(const TextConfig& config, std::span<const std::array<std::int64_t, 3>> positions, float* cosine, float* sine) {
    const std::int64_t half = config.head_dim / 2;
    const std::vector<float> frequency = frequencies(config.rope_theta, config.head_dim);
    for (std::size_t r = 0; r < positions.size(); ++r)
        for (std::int64_t i = 0; i < half; ++i) {
            // Interleaved sections: every third frequency belongs to h or w as far as their sections reach.
            int axis = 0;
            if (i % 3 == 1 && i < 3 * config.mrope_section[1]) axis = 1;
            if (i % 3 == 2 && i < 3 * config.mrope_section[2]) axis = 2;
            const float angle = static_cast<float>(positions[r][static_cast<std::size_t>(axis)]) * frequency[static_cast<std::size_t>(i)];
            const std::int64_t at = static_cast<std::int64_t>(r) * half + i;
            put_angle(angle, cosine + at, sine + at);
        }
}

void vision_rotation(const VisionConfig& config, std::span<const GridThw> grids, float* cosine, float* sine) {
    const std::int64_t half = config.head_dim() / 2, quarter = half / 2;
    const std::vector<float> frequency = frequencies(config.rope_theta, half);
    // A patch has the angles of its row and of its column: each row and column is made once.
    std::int64_t longest = 0;
    for (const GridThw& grid : grids) longest = std::max({longest, grid[1], grid[2]});
    std::vector<float> cosines(static_cast<std::size_t>(longest * quarter)), sines(cosines.size());
    for (std::int64_t place = 0; place < longest; ++place)
        for (std::int64_t i = 0; i < quarter; ++i)
            put_angle(static_cast<float>(place) * frequency[static_cast<std::size_t>(i)], &cosines[static_cast<std::size_t>(place * quarter + i)],
                      &sines[static_cast<std::size_t>(place * quarter + i)]);
    std::int64_t row = 0;
    for (const GridThw& grid : grids)
        for (std::int64_t k = 0; k < grid[1] * grid[2]; ++k, ++row) {
            const auto place = patch_place(grid, config.merge, k);
            for (std::int64_t axis = 0; axis < 2; ++axis) {
                const std::int64_t from = place[static_cast<std::size_t>(axis)] * quarter, to = row * half + axis * quarter;
                std::copy_n(cosines.begin() + from, quarter, cosine + to);
                std::copy_n(sines.begin() + from, quarter, sine + to);
            }
        }
}

PositionCorners position_corners(const VisionConfig& config, const GridThw& grid, std::int64_t k) {
    const auto side = static_cast<std::int64_t>(std::llround(std::sqrt(static_cast<double>(config.positions))));
    ATELIER_CHECK_INPUT(side * side == config.positions, "num_position_embeddings must be a square, found {}", config.positions);
    const auto place = patch_place(grid, config.merge, k);
    std::array<std::int64_t, 2> low{}, high{};
    std::array<float, 2> part{};
    for (std::size_t axis = 0; axis < 2; ++axis) {
        const std::int64_t extent = grid[axis + 1];
        const float at = extent == 1 ? 0.0f : static_cast<float>(place[axis] * (side - 1)) / static_cast<float>(extent - 1);
        low[axis] = static_cast<std::int64_t>(at);
        high[axis] = std::min(low[axis] + 1, side - 1);
        part[axis] = at - static_cast<float>(low[axis]);
    }
    return {{low[0] * side + low[1], low[0] * side + high[1], high[0] * side + low[1], high[0] * side + high[1]},
            {(1 - part[0]) * (1 - part[1]), (1 - part[0]) * part[1], part[0] * (1 - part[1]), part[0] * part[1]}};
}

PositionBlend position_blend(const VisionConfig& config, std::span<const GridThw> grids) {
    PositionBlend blend;
    for (const GridThw& grid : grids)
        for (std::int64_t k = 0; k < grid[1] * grid[2]; ++k) {
            const PositionCorners c = position_corners(config, grid, k);
            for (const std::int64_t row : c.row) blend.row.push_back(static_cast<std::int32_t>(row));
            blend.share.insert(blend.share.end(), c.share.begin(), c.share.end());
        }
    return blend;
}

void check_patches(const VisionConfig& config, const Tensor& pixel_values, std::span<const GridThw> grids, std::int64_t max_patches) {
    std::int64_t total = 0;
    for (const GridThw& grid : grids) total += grid[0] * grid[1] * grid[2];
    ATELIER_CHECK_INPUT(!pixel_values.empty() && total == pixel_values.size(0) && total <= max_patches &&
                            pixel_values.size(1) == config.patch_elements(),
                        "pixel values {} for grids of {} patches of {} numbers (planned for {} patches)",
                        pixel_values.shape().str(), total, config.patch_elements(), max_patches);
}

}  // namespace atelier::vlm
