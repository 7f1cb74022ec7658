#include "model/processor/sizes.hpp"

#include <algorithm>
#include <cmath>

#include "core/error.hpp"

namespace atelier::model {

namespace {

/// To the nearest integer, halves to even whatever the rounding mode of the thread.
double round_half_even(double x) {
    const double below = std::floor(x), part = x - below;
    if (part != 0.5) return part < 0.5 ? below : below + 1;
    return std::fmod(below, 2) == 0 ? below : below + 1;
}

}  // namespace

PictureSize smart_resize(PictureSize size, std::int64_t factor, std::int64_t min_pixels,
                         std::int64_t max_pixels) {
    const auto [short_side, long_side] = std::minmax(size.width, size.height);
    ATELIER_CHECK_INPUT(short_side > 0 && long_side <= 200 * short_side,
                        "a picture of {} x {}: expected sides whose ratio is at most 200; crop it",
                        size.width, size.height);
    const auto multiple = static_cast<double>(factor);
    const auto width = static_cast<double>(size.width), height = static_cast<double>(size.height);
    double wide = round_half_even(width / multiple) * multiple;
    double high = round_half_even(height / multiple) * multiple;
    if (high * wide > static_cast<double>(max_pixels)) {
        const double beta = std::sqrt(height * width / static_cast<double>(max_pixels));
        high = std::max(multiple, std::floor(height / beta / multiple) * multiple);
        wide = std::max(multiple, std::floor(width / beta / multiple) * multiple);
    } else if (high * wide < static_cast<double>(min_pixels)) {
        const double beta = std::sqrt(static_cast<double>(min_pixels) / (height * width));
        high = std::ceil(height * beta / multiple) * multiple;
        wide = std::ceil(width * beta / multiple) * multiple;
    }
    return {static_cast<std::int64_t>(wide), static_cast<std::int64_t>(high)};
}

PictureSize calculate_dimensions(std::int64_t target_area, double ratio) {
    const double width = std::sqrt(static_cast<double>(target_area) * ratio);
    const double height = width / ratio;
    return {static_cast<std::int64_t>(round_half_even(width / 32) * 32),
            static_cast<std::int64_t>(round_half_even(height / 32) * 32)};
}

}  // namespace atelier::model
