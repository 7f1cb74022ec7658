#pragma once

#include <cstdint>

namespace atelier::model {

struct PictureSize {
    std::int64_t width = 0;
    std::int64_t height = 0;
    bool operator==(const PictureSize& other) const = default;
};

/// Sides that are multiples of `factor`, close to the picture's, with an area between the limits
/// (Qwen2-VL's rule; halves round to even). Throws Error(input) if one side is more than 200 times
/// the other.
PictureSize smart_resize(PictureSize size, std::int64_t factor, std::int64_t min_pixels,
                         std::int64_t max_pixels);

/// Sides that are multiples of 32 with about `target_area` pixels and `ratio` = width / height (the
/// pipeline's rule; halves round to even). A side may come out as 0 for extreme ratios.
PictureSize calculate_dimensions(std::int64_t target_area, double ratio);

}  // namespace atelier::model
