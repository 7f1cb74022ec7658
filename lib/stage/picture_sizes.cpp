#include "stage/picture_sizes.hpp"

#include <algorithm>
#include <functional>
#include <numeric>

#include "io/image/png.hpp"
#include "model/processor/image_inputs.hpp"
#include "stage/gather.hpp"

namespace atelier::stage {
namespace {

using model::PictureSize;

void check_size(PictureSize size, const std::string& place) {
    ATELIER_CHECK_USAGE(size.width >= side_multiple && size.height >= side_multiple && size.width % side_multiple == 0 &&
                            size.height % side_multiple == 0,
                        "{}: pictures of {} x {} (height x width): sides must be multiples of {}", place, size.height, size.width,
                        side_multiple);
}

std::vector<PictureSize> listed_sizes(const config::Config& config, const std::string& task) {
    const std::string key = "task." + task + ".sizes";
    std::vector<PictureSize> sizes;
    for (const auto& [height, width] : config.pairs(key)) {
        sizes.push_back({width, height});
        check_size(sizes.back(), key);
    }
    return sizes;
}

PictureSize default_size(const config::Config& config) {
    const PictureSize size{config.integer("sampling.width"), config.integer("sampling.height")};
    check_size(size, "sampling.height, sampling.width");
    return size;
}

}  // namespace

std::vector<PictureSize> possible_sizes(const Context& c, const Prompt& prompt) {
    if (prompt.size) return {*prompt.size};
    if (auto listed = listed_sizes(c.config, prompt.task); !listed.empty()) return listed;
    if (prompt.images.empty()) return {default_size(c.config)};
    io::Image last;  // its size alone counts
    const auto [width, height] = io::read_png_size(prompt.images.back());
    last.width = width;
    last.height = height;
    return {model::output_size(0, 0, c.config.integer("sampling.output_resolution"), {&last, 1})};
}

PictureSize picture_size(const Context& c, const Prompt& prompt) {
    const auto sizes = possible_sizes(c, prompt);
    if (sizes.size() == 1) return sizes[0];
    Random random(random_key(c.seed(), RandomUse::picture_size, static_cast<std::uint64_t>(c.iteration), task_number(prompt.task),
                             prompt.number));
    return sizes[random.below(sizes.size())];
}

dit::Grid target_grid(PictureSize size) { return {size.height / model::pixels_per_latent, size.width / model::pixels_per_latent}; }

dit::Grid target_grid(const Context& c, const Prompt& prompt) { return target_grid(picture_size(c, prompt)); }

std::vector<PictureSize> configured_sizes(const config::Config& config, const std::string& task) {
    if (auto listed = listed_sizes(config, task); !listed.empty()) return listed;
    if (config.text("task." + task + ".kind") != "edit") return {default_size(config)};
    const std::int64_t side = config.integer("sampling.output_resolution");
    const PictureSize square{side, side};
    check_size(square, "sampling.output_resolution");
    return {square};
}

std::vector<std::uint64_t> order_by_size(const Context& c, const PromptSource& prompts) {
    // Each rank looks at its share of the files.
    nlohmann::json mine = nlohmann::json::array();
    for (std::size_t i = 0; i < prompts.size; ++i) {
        if (!c.is_mine(i)) continue;
        const dit::Grid grid = target_grid(c, prompts.at(i));
        mine.push_back({grid.tokens(), grid.height});
    }
    std::vector<std::pair<std::int64_t, std::int64_t>> sizes(prompts.size);
    const auto all = gather_json(*c.world, mine);
    for (std::size_t i = 0; i < sizes.size(); ++i) sizes[i] = all.at(i % all.size()).at(i / all.size());
    std::vector<std::uint64_t> order(prompts.size);
    std::iota(order.begin(), order.end(), 0u);
    std::ranges::stable_sort(order, std::greater(), [&](std::uint64_t i) { return sizes[i]; });
    return order;
}

void put_sizes_together(const Context& c, std::vector<Prompt>& prompts) {
    std::vector<Prompt> sorted;
    for (const std::uint64_t i : order_by_size(c, source_of(prompts))) sorted.push_back(std::move(prompts[i]));
    prompts = std::move(sorted);
}

}  // namespace atelier::stage
