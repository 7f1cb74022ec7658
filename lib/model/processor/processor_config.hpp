#pragma once

#include <array>
#include <cstdint>
#include <filesystem>

#include "model/processor/resize.hpp"

namespace atelier::model {

/// How the condition encoder's image processor (Qwen2VLImageProcessor) makes patches of a picture.
/// Values not in the file have that class's defaults.
struct ProcessorConfig {
    std::filesystem::path path;                ///< the file it came from
    std::int64_t min_pixels = 56 * 56;         ///< smallest area after resizing
    std::int64_t max_pixels = 28 * 28 * 1280;  ///< largest area after resizing
    std::int64_t patch_size = 14;              ///< pixels
    std::int64_t temporal_patch_size = 2;      ///< equal frames of a still picture
    std::int64_t merge_size = 2;               ///< patches merged into one token, each way
    ResizeFilter filter = ResizeFilter::bicubic;
    double rescale_factor = 1.0 / 255;
    std::array<double, 3> mean{0.48145466, 0.4578275, 0.40821073};
    std::array<double, 3> std{0.26862954, 0.26130258, 0.27577711};

    /// Numbers of one patch: 3 channels × frames × patch_size².
    std::int64_t patch_elements() const {
        return 3 * temporal_patch_size * patch_size * patch_size;
    }

    /// `path`: processor_config.json (settings under "image_processor"), preprocessor_config.json
    /// (settings at the top), or a directory with one of them (the first wins, as in transformers).
    /// Sizes as size{shortest_edge, longest_edge} or as min_pixels and max_pixels. Throws
    /// Error(input) naming file, key and found value for a setting that this program does not
    /// support.
    static ProcessorConfig load(const std::filesystem::path& path);
};

}  // namespace atelier::model
