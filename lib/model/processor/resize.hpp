#pragma once

#include <cstdint>

#include "io/image/image.hpp"

namespace atelier::model {

enum class ResizeFilter : std::uint8_t { bilinear, bicubic, lanczos };

/// Pillow's 8-bit resize, bit for bit: antialiased (the filter widens with the shrink factor), weights
/// as 22-bit integers, rounded and clamped to 0 … 255 after each pass, horizontal pass first (Pillow
/// up to 12; Pillow 13 turns the order round for some sizes that shrink in height). RGBA is resized
/// with premultiplied alpha and divided back. A picture that has the size already comes back as it
/// is. Source of the method: Pillow's documentation and the measurements in the oracle's notes.
io::Image resize(const io::Image& image, int width, int height, ResizeFilter filter);

/// RGBA (or RGB, unchanged) over white as RGB; x·a + 255·(255 − a) by 255, rounded.
io::Image over_white(const io::Image& image);

/// RGB with alpha 255 added; RGBA unchanged.
io::Image with_alpha(const io::Image& image);

}  // namespace atelier::model
