#include "model/dit/layout.hpp"

#include <cmath>

#include "core/error.hpp"

namespace atelier::dit {
namespace {

constexpr std::int64_t tokens_per_slot = 4;
constexpr double rope_theta = 10000.0;  // fixed in the class, not in its config

struct Position {
    std::int64_t frame, height, width;
};

/// Rows and columns are centred on zero: -(n - n/2) ... n/2 - 1.
Position in_picture(std::int64_t frame, Grid grid, std::int64_t token) {
    const std::int64_t row = token / grid.width, column = token % grid.width;
    return {frame, row - (grid.height - grid.height / 2), column - (grid.width - grid.width / 2)};
}

void append_angles(const Config& c, const Position& p, std::vector<float>& cosine, std::vector<float>& sine) {
    const std::int64_t index[3] = {p.frame, p.height, p.width};
    for (int axis = 0; axis < 3; ++axis) {
        const std::int64_t dim = c.rope_dims[axis];
        for (std::int64_t i = 0; i < dim; i += 2) {
            // Angles are single precision by definition of the model.
            const float exponent = static_cast<float>(i) / static_cast<float>(dim);
            const float frequency = 1.0f / static_cast<float>(std::pow(rope_theta, static_cast<double>(exponent)));
            const float angle = static_cast<float>(index[axis]) * frequency;
            cosine.push_back(static_cast<float>(std::cos(static_cast<double>(angle))));
            sine.push_back(static_cast<float>(std::sin(static_cast<double>(angle))));
        }
    }
}

}  // namespace

Layout make_layout(const Config& config, std::span<const std::uint8_t> image_slot, std::span<const Grid> references,
                   Grid target, std::span<const std::uint8_t> valid) {
    Layout layout;
    layout.encoder_tokens = static_cast<std::int64_t>(image_slot.size());
    layout.target_tokens = target.tokens();
    ATELIER_CHECK_INPUT(valid.empty() || valid.size() == image_slot.size(),
                        "the padding mask has {} tokens, the prompt {}", valid.size(), image_slot.size());
    std::vector<Position> positions;
    std::int64_t position = 0, taken = 0;
    std::size_t picture = 0;
    const auto add = [&](std::int32_t source, std::int64_t limit, std::uint8_t is_valid, const Position& p) {
        layout.source.push_back(source);
        layout.limit.push_back(static_cast<std::int32_t>(limit));
        layout.valid.push_back(is_valid);
        positions.push_back(p);
    };
    for (std::size_t i = 0; i < image_slot.size();) {
        if (image_slot[i] == 0) {
            const std::int64_t at = layout.prefix_tokens();
            add(static_cast<std::int32_t>(i), at + 1, valid.empty() ? 1 : valid[i], {position, position, position});
            ++position;
            ++i;
            continue;
        }
        ATELIER_CHECK_INPUT(picture < references.size(), "the prompt has image slots beyond its {} references",
                            references.size());
        const Grid grid = references[picture++];
        const std::int64_t slots = grid.tokens() / tokens_per_slot;
        ATELIER_CHECK_INPUT(slots > 0 && grid.tokens() % tokens_per_slot == 0,
                            "a reference of {} x {} latent tokens is not made of 2 x 2 groups", grid.height, grid.width);
        const std::int64_t begin = layout.prefix_tokens();
        for (std::int64_t s = 0; s < slots; ++s, ++i)
            ATELIER_CHECK_INPUT(i < image_slot.size() && image_slot[i] != 0,
                                "reference {} of {} x {} latent tokens needs {} image slots, the prompt has {}", picture,
                                grid.height, grid.width, slots, s);
        for (std::int64_t token = 0; token < grid.tokens(); ++token)
            add(static_cast<std::int32_t>(-1 - (taken + token)), begin + grid.tokens(), 1,
                in_picture(position, grid, token));
        taken += grid.tokens();
        position += std::max(grid.height, grid.width);
    }
    ATELIER_CHECK_INPUT(picture == references.size(), "the prompt has image slots for {} of {} references", picture,
                        references.size());
    layout.reference_tokens = taken;
    for (std::int64_t token = 0; token < target.tokens(); ++token)
        positions.push_back(in_picture(position, target, token));
    if (valid.empty()) layout.valid.clear();
    for (const Position& p : positions) append_angles(config, p, layout.cosine, layout.sine);
    return layout;
}

}  // namespace atelier::dit
