#include "model/dit/layout.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <unordered_map>
#include <utility>

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

/// Cosines and sines of an axis's indices: tokens of a picture share rows and columns, each index is made once.
class AxisAngles {
  public:
    explicit AxisAngles(std::int64_t dim) {
        for (std::int64_t i = 0; i < dim; i += 2) {
            // Angles are single precision by definition of the model.
            const float exponent = static_cast<float>(i) / static_cast<float>(dim);
            frequency_.push_back(1.0f / static_cast<float>(std::pow(rope_theta, static_cast<double>(exponent))));
        }
    }
    void append(std::int64_t index, std::vector<float>& cosine, std::vector<float>& sine) {
        const auto [entry, is_new] = made_.try_emplace(index);
        auto& [cosines, sines] = entry->second;
        if (is_new)
            for (const float frequency : frequency_) {
                const float angle = static_cast<float>(index) * frequency;
                cosines.push_back(static_cast<float>(std::cos(static_cast<double>(angle))));
                sines.push_back(static_cast<float>(std::sin(static_cast<double>(angle))));
            }
        cosine.insert(cosine.end(), cosines.begin(), cosines.end());
        sine.insert(sine.end(), sines.begin(), sines.end());
    }

  private:
    std::vector<float> frequency_;
    std::unordered_map<std::int64_t, std::pair<std::vector<float>, std::vector<float>>> made_;
};

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
    layout.prompts = {{0, layout.prefix_tokens()}};
    std::array axes{AxisAngles(config.rope_dims[0]), AxisAngles(config.rope_dims[1]), AxisAngles(config.rope_dims[2])};
    for (const Position& p : positions) {
        axes[0].append(p.frame, layout.cosine, layout.sine);
        axes[1].append(p.height, layout.cosine, layout.sine);
        axes[2].append(p.width, layout.cosine, layout.sine);
    }
    return layout;
}

Layout join(std::span<const Layout> layouts) {
    Layout all;
    all.target_tokens = layouts.front().target_tokens;
    const bool has_padding = std::ranges::any_of(layouts, [](const Layout& l) { return !l.valid.empty(); });
    const auto append = [](auto& to, const auto& from, std::ptrdiff_t begin, std::ptrdiff_t end) {
        to.insert(to.end(), from.begin() + begin, from.begin() + end);
    };
    for (const Layout& l : layouts) {
        ATELIER_CHECK(l.target_tokens == all.target_tokens, "targets of {} and {} tokens cannot run together", all.target_tokens, l.target_tokens);
        for (const PromptRange& p : l.prompts) all.prompts.push_back({all.prefix_tokens() + p.first, p.tokens});
        for (const std::int32_t s : l.source)
            all.source.push_back(static_cast<std::int32_t>(s >= 0 ? s + all.encoder_tokens : s - all.reference_tokens));
        append(all.limit, l.limit, 0, std::ssize(l.limit));
        if (has_padding && l.valid.empty()) all.valid.resize(all.source.size(), 1);
        else append(all.valid, l.valid, 0, std::ssize(l.valid));
        all.encoder_tokens += l.encoder_tokens;
        all.reference_tokens += l.reference_tokens;
    }
    // Angles of all prefixes, then of all targets.
    for (const bool of_targets : {false, true})
        for (const Layout& l : layouts) {
            const std::int64_t half = std::ssize(l.cosine) / (l.prefix_tokens() + l.prompt_count() * l.target_tokens);
            const std::int64_t split = l.prefix_tokens() * half, begin = of_targets ? split : 0, end = of_targets ? std::ssize(l.cosine) : split;
            append(all.cosine, l.cosine, begin, end);
            append(all.sine, l.sine, begin, end);
        }
    return all;
}

}  // namespace atelier::dit
