#pragma once

#include <string_view>

#include "io/image/image.hpp"

namespace atelier::io {

/// A character takes 6 × 8 pixels (glyph 5 × 7 and a gap).
inline constexpr int font_advance = 6;
inline constexpr int font_line_height = 8;

/// Draws one line of UTF-8 `text` in black with its top left corner at (left, top), each font pixel
/// `scale` × `scale` large; stops before the first character that would cross `right`. Characters
/// outside printable ASCII become a box; pixels outside the picture are left out.
void draw_text(Image& image, std::string_view text, int left, int top, int right, int scale);

}  // namespace atelier::io
