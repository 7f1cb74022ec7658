#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/philox.hpp"
#include "io/image/image.hpp"
#include "model/processor/sizes.hpp"

namespace atelier::stage {

/// Sides of pictures are multiples of this (pixels): two latent tokens, as QwenImage21Pipeline rounds.
inline constexpr std::int64_t side_multiple = 32;

/// One line of a prompt file.
struct Prompt {
    std::uint64_t number = 0;  ///< its place in the file: what random keys are made from
    std::string id, task, category, text,
        attributes;  ///< task of the configuration; attributes as JSON
    std::vector<std::filesystem::path> images;
    std::optional<model::PictureSize> size;  ///< of the picture to make; none: see picture_sizes.hpp
};

/// Reads JSON lines {id, task, category, text, images, attributes, size: [height, width]}, the last
/// three optional; `task` becomes theirs. Throws
/// Error(input) naming file and line: no object, a missing or wrong field, a `task` that is not the
/// configured kind, an id that stands twice, a picture outside the file's directory, a size that
/// is no pair of positive multiples of 32.
std::vector<Prompt> read_prompts(const std::filesystem::path& file, const std::string& task,
                                 const std::string& kind);

/// `count` different prompts of `total`, in the order drawn; depends on (seed, task, iteration)
/// alone. Throws Error(usage) if there are too few.
std::vector<std::size_t> draw_prompts(std::size_t total, std::size_t count, std::uint64_t seed,
                                      std::uint64_t task, std::uint64_t iteration);

/// A task's number for random keys: from its name, so that adding a task changes no other.
std::uint64_t task_number(const std::string& task);

}  // namespace atelier::stage
