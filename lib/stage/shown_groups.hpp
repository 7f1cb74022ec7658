#pragma once

#include <map>
#include <string>
#include <vector>

#include "io/image/image.hpp"
#include "stage/run_history.hpp"

namespace atelier::stage {

/// One sample of a group, for people.
struct ShownSample {
    io::Image picture;  ///< RGB, at most shown_side pixels wide and high
    float total = 0, advantage = 0;
    std::map<std::string, std::pair<float, std::string>> scores;  ///< score and reason of the dimensions that are there
};

/// A prompt with the best and the worst of its samples by their totals.
struct ShownGroup {
    std::string text, category;
    std::vector<io::Image> references;  ///< as small
    ShownSample best, worst;
};

/// Sides of pictures in a page, and groups of a rollout in it.
inline constexpr int shown_side = 192;
inline constexpr std::size_t shown_groups = 4;

/// Some groups of a complete rollout, evenly over it: those whose pictures are still there ([storage] keep) and that have totals. Reads
/// the scores of those groups and two pictures of each. Throws Error(input) for a damaged shard.
std::vector<ShownGroup> groups_to_show(const RunDirectory& run, const JobState& rollout);

}  // namespace atelier::stage
