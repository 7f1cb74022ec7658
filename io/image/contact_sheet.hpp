#pragma once

#include <array>
#include <string>
#include <vector>

#include "io/image/image.hpp"

namespace atelier::io {

struct ContactSheet {
    std::vector<std::vector<const Image*>> rows;  ///< RGB or RGBA, any size; null: an empty cell
    std::vector<std::string> row_captions;        ///< above each row; empty list or string: none
    std::vector<std::string> column_captions;     ///< above each column
    int margin = 4;                               ///< pixels between cells and around the sheet
    int text_scale = 1;                           ///< a character takes 6 × 8 of these
};

/// One RGB picture: all cells as large as the largest picture, each picture centred in its cell,
/// over white (alpha too), captions in black on one line, cut where the cell or the sheet ends. A
/// character outside printable ASCII is drawn as a box. Throws Error(usage) if no picture is given.
Image contact_sheet(const ContactSheet& sheet);

/// Width and height of the largest pictures with which neither side of the sheet passes `side` pixels, by its rows, columns and
/// captions alone. Throws Error(usage) where not a pixel is left.
std::array<int, 2> largest_cell(const ContactSheet& sheet, int side);

}  // namespace atelier::io
