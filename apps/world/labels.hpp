#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

namespace atelier {

/// What a judge of the world is trained on and measured against.
struct LabelPlan {
    std::uint64_t t2i = 0, edit = 0;  ///< pictures drawn of each kind, flawed and whole ones
    std::vector<std::filesystem::path> samples;  ///< directories of trajectory shards: a model's own pictures
    int annotators = 3;  ///< 0: the measures themselves, as annotator "truth"
    std::uint64_t seed = 1;
};

/// Writes labels (lib/judge/labels.hpp) of every dimension that applies: the world's measures, seen through annotators who
/// are off by a constant of their own and by chance, and round to halves; the rationale is the measure's reason, of
/// alignment and instruction after a caption of what is seen. Throws
/// Error(input) for pictures of another world, Error(io).
void write_world_labels(const LabelPlan& plan, const std::filesystem::path& file);

}  // namespace atelier
