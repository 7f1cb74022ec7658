#include "io/image/contact_sheet.hpp"

#include <algorithm>

#include "core/error.hpp"
#include "io/image/bitmap_font.hpp"

namespace atelier::io {

namespace {

void place_over_white(const Image& source, Image& target, int left, int top) {
    for (int y = 0; y < source.height; ++y) {
        for (int x = 0; x < source.width; ++x) {
            const std::uint8_t* from = source.at(x, y);
            std::uint8_t* to = target.at(left + x, top + y);
            const int alpha = source.channels == 4 ? from[3] : 255;
            for (int c = 0; c < 3; ++c) {
                to[c] =
                    static_cast<std::uint8_t>((from[c] * alpha + 255 * (255 - alpha) + 127) / 255);
            }
        }
    }
}

bool any_text(const std::vector<std::string>& captions) {
    return std::any_of(captions.begin(), captions.end(),
                       [](const std::string& text) { return !text.empty(); });
}

/// Pixels above the cells: of the sheet, of a row.
struct Heads {
    int sheet = 0, row = 0;
};

Heads heads_of(const ContactSheet& sheet) {
    const int line = font_line_height * sheet.text_scale + 2;
    return {any_text(sheet.column_captions) ? line : 0, any_text(sheet.row_captions) ? line : 0};
}

int columns_of(const ContactSheet& sheet) {
    std::size_t columns = 0;
    for (const auto& row : sheet.rows) columns = std::max(columns, row.size());
    return static_cast<int>(columns);
}

}  // namespace

std::array<int, 2> largest_cell(const ContactSheet& sheet, int side) {
    const Heads heads = heads_of(sheet);
    const int rows = std::max(1, static_cast<int>(sheet.rows.size())), columns = std::max(1, columns_of(sheet));
    const std::array<int, 2> cell{(side - sheet.margin) / columns - sheet.margin,
                                  (side - sheet.margin - heads.sheet) / rows - heads.row - sheet.margin};
    ATELIER_CHECK_USAGE(cell[0] > 0 && cell[1] > 0, "{} rows of {} pictures do not go on a contact sheet of {} x {} pixels", rows, columns,
                        side, side);
    return cell;
}

Image contact_sheet(const ContactSheet& sheet) {
    int cell_width = 0, cell_height = 0;
    for (const auto& row : sheet.rows) {
        for (const Image* image : row) {
            if (!image) continue;
            ATELIER_CHECK(image->channels == 3 || image->channels == 4,
                          "expected RGB or RGBA, found {} channels", image->channels);
            cell_width = std::max(cell_width, image->width);
            cell_height = std::max(cell_height, image->height);
        }
    }
    ATELIER_CHECK_USAGE(cell_width > 0,
                        "a contact sheet needs at least one picture, found {} rows without any",
                        sheet.rows.size());
    const auto [head, row_head] = heads_of(sheet);
    const int columns = columns_of(sheet);
    const int row_count = static_cast<int>(sheet.rows.size());
    Image out(sheet.margin + columns * (cell_width + sheet.margin),
              sheet.margin + head + row_count * (row_head + cell_height + sheet.margin), 3, 255);

    for (int column = 0;
         head > 0 && column < std::min(columns, static_cast<int>(sheet.column_captions.size()));
         ++column) {
        const int left = sheet.margin + column * (cell_width + sheet.margin);
        draw_text(out, sheet.column_captions[static_cast<std::size_t>(column)], left, sheet.margin,
                  left + cell_width, sheet.text_scale);
    }
    for (int row = 0; row < row_count; ++row) {
        int top = sheet.margin + head + row * (row_head + cell_height + sheet.margin);
        if (row_head > 0 && row < static_cast<int>(sheet.row_captions.size())) {
            draw_text(out, sheet.row_captions[static_cast<std::size_t>(row)], sheet.margin, top,
                      out.width, sheet.text_scale);
        }
        top += row_head;
        int left = sheet.margin;
        for (const Image* image : sheet.rows[static_cast<std::size_t>(row)]) {
            if (image) {
                place_over_white(*image, out, left + (cell_width - image->width) / 2,
                                 top + (cell_height - image->height) / 2);
            }
            left += cell_width + sheet.margin;
        }
    }
    return out;
}

}  // namespace atelier::io
