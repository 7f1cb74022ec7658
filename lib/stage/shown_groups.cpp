#include "stage/shown_groups.hpp"

#include <algorithm>
#include <cmath>

#include "io/trajectory.hpp"
#include "model/processor/resize.hpp"

namespace atelier::stage {
namespace {

io::Image small(const io::Image& picture) {
    const double scale = std::min(1., shown_side / static_cast<double>(std::max(picture.width, picture.height)));
    const auto side = [&](int pixels) { return std::max(1, static_cast<int>(std::lround(scale * pixels))); };
    return model::resize(model::over_white(picture), side(picture.width), side(picture.height), model::ResizeFilter::lanczos, model::PassOrder::pillow_13);
}

io::Image image_of(std::int64_t width, std::int64_t height, std::vector<std::uint8_t> rgba) {
    io::Image image;
    image.width = static_cast<int>(width), image.height = static_cast<int>(height), image.channels = 4;
    image.pixels = std::move(rgba);
    return image;
}

ShownSample sample_of(const std::filesystem::path& shard, const io::TrajectorySamples& s, std::size_t m) {
    ShownSample shown{small(image_of(s.picture_width, s.picture_height, io::read_picture(shard, s, static_cast<std::int64_t>(m)))), s.total[m], s.advantage[m], {}};
    for (const auto& [name, column] : s.reward)
        if (column.present[m] != 0) shown.scores[name] = {column.score[m], column.reason[m]};
    return shown;
}

}  // namespace

std::vector<ShownGroup> groups_to_show(const RunDirectory& run, const JobState& rollout) {
    std::vector<std::string> shards;
    for (const std::string& name : rollout.made.value().outputs)
        if (name.starts_with("shard-")) shards.push_back(name);
    std::vector<ShownGroup> groups;
    const std::size_t count = std::min(shown_groups, shards.size());
    for (std::size_t i = 0; i < count; ++i) {
        const auto path = run.root / rollout.job.output / shards[i * shards.size() / count];
        const io::TrajectoryShard shard = io::read_trajectory(path, {}, io::TrajectoryParts::scores_and_references);
        if (shard.shapes.empty() || shard.shapes[0].total.empty()) continue;
        const io::TrajectorySamples& s = shard.shapes[0];
        std::vector<std::size_t> order;
        for (std::size_t m = 0; m < s.total.size(); ++m)
            if (std::isfinite(s.total[m])) order.push_back(m);
        if (order.empty()) continue;
        const auto [worst, best] = std::ranges::minmax(order, {}, [&](std::size_t m) { return s.total[m]; });
        const std::size_t prompt = s.prompt[best];
        ShownGroup& group = groups.emplace_back(ShownGroup{shard.prompts.text[prompt], shard.prompts.category[prompt], {}, sample_of(path, s, best), sample_of(path, s, worst)});
        for (const io::ReferenceImage& reference : shard.prompts.images)
            if (reference.prompt == prompt) group.references.push_back(small(image_of(reference.width, reference.height, reference.rgba)));
    }
    return groups;
}

}  // namespace atelier::stage
