#pragma once

#include <cstdint>

#include "io/image/image.hpp"

namespace atelier::model {

enum class ResizeFilter : std::uint8_t { bilinear, bicubic, lanczos };

/// Which axis goes first; it matters because bytes are rounded and clamped in between (up to 17 of
/// 255 in the oracle's pictures).
enum class PassOrder : std::uint8_t {
    horizontal_first,  ///< Pillow up to 12
    pillow_13,  ///< vertical first where the height shrinks, by more than twice what the width does
};

/// Pillow's 8-bit resize, bit for bit: antialiased (the filter widens with the shrink factor),
/// weights as 22-bit integers, rounded and clamped to 0 … 255 after each pass. RGBA is resized with
/// premultiplied alpha and divided back. A picture that has the size already comes back as it is.
io::Image resize(const io::Image& image, int width, int height, ResizeFilter filter,
                 PassOrder order);

/// RGBA (or RGB, unchanged) over white as RGB; x·a + 255·(255 − a) by 255, rounded.
io::Image over_white(const io::Image& image);

/// RGB with alpha 255 added; RGBA unchanged.
io::Image with_alpha(const io::Image& image);

}  // namespace atelier::model
