#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
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

/// A prompt file: JSON lines {id, task, category, text, images: [files], attributes: {}, size: [height, width]}, the
/// last three optional, but for an edit's images. Every line is checked when it is opened, and kept as its text: a prompt is made
/// when it is asked for, so that a large pool takes little more memory than its file has bytes.
class PromptPool {
  public:
    /// `task` becomes the prompts'. Throws Error(input) naming file and line: no object, a missing or
    /// wrong field, one that prompts don't have, an edit without images, a `task` that is not the configured kind, an id that stands twice, a picture
    /// outside the file's directory, a size that is no pair of positive multiples of 32.
    PromptPool(std::filesystem::path file, std::string task, std::string kind);
    std::size_t size() const { return lines_.size(); }
    const std::filesystem::path& file() const { return file_; }
    Prompt at(std::size_t index) const;
    /// Where the prompt with this id is, if it is.
    std::optional<std::size_t> find(const std::string& id) const;
    /// Leaves the prompts of these indices, in this order. Each one's `number` stays what it was.
    void keep(std::span<const std::uint64_t> indices);

  private:
    struct Line {
        std::uint64_t begin = 0;
        std::uint32_t length = 0, place = 0;    ///< bytes; which line of the file, from 1
        std::uint32_t number = 0, id_hash = 0;  ///< which prompt of the file, from 0
    };
    Prompt parse(const Line& line) const;
    std::string place_of(const Line& line) const;
    void check_ids() const;
    std::filesystem::path file_;
    std::string task_, kind_, text_;
    std::vector<Line> lines_;
};

/// Prompts in the order in which a stage works on them, made when they are asked for. What they are made from must outlive it.
struct PromptSource {
    std::size_t size = 0;
    std::function<Prompt(std::size_t)> at;
};
PromptSource source_of(const PromptPool& pool);
PromptSource source_of(const std::vector<Prompt>& prompts);

/// All prompts of a file at once.
std::vector<Prompt> read_prompts(const std::filesystem::path& file, const std::string& task,
                                 const std::string& kind);

/// `count` different prompts of `total`, in the order drawn; depends on (seed, task, iteration)
/// alone. Throws Error(usage) if there are too few.
std::vector<std::size_t> draw_prompts(std::size_t total, std::size_t count, std::uint64_t seed,
                                      std::uint64_t task, std::uint64_t iteration);

/// The order in which one pass of training goes through `count` things; depends on (seed, of, epoch) alone.
std::vector<std::size_t> draw_order(std::uint64_t seed, std::uint64_t of, std::uint64_t epoch, std::size_t count);

/// A task's number for random keys: from its name, so that adding a task changes no other.
std::uint64_t task_number(const std::string& task);

}  // namespace atelier::stage
