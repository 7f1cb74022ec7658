#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <png.h>
#include <unistd.h>

#include <fstream>
#include <functional>

#include "core/error.hpp"
#include "io/image/contact_sheet.hpp"
#include "io/image/png.hpp"

namespace atelier::io {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Bytes = std::vector<std::uint8_t>;

Image gradient(int width, int height, int channels) {
    Image image(width, height, channels);
    for (std::size_t i = 0; i < image.pixels.size(); ++i)
        image.pixels[i] = static_cast<std::uint8_t>(i * 7 + i / 13);
    return image;
}

/// A PNG of any kind, written by libpng itself.
Bytes png_of(int width, int height, int bits, int color, int interlace,
             const std::vector<Bytes>& rows,
             const std::function<void(png_structp, png_infop)>& more = {}) {
    Bytes out;
    png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, nullptr, nullptr, nullptr);
    png_infop info = png_create_info_struct(png);
    png_set_write_fn(
        png, &out,
        [](png_structp p, png_bytep data, png_size_t n) {
            auto* bytes = static_cast<Bytes*>(png_get_io_ptr(p));
            bytes->insert(bytes->end(), data, data + n);
        },
        nullptr);
    png_set_IHDR(png, info, static_cast<png_uint_32>(width), static_cast<png_uint_32>(height), bits,
                 color, interlace, PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    if (more) more(png, info);
    png_write_info(png, info);
    std::vector<png_bytep> pointers;
    for (const Bytes& row : rows) pointers.push_back(const_cast<png_bytep>(row.data()));
    png_write_image(png, pointers.data());
    png_write_end(png, info);
    png_destroy_write_struct(&png, &info);
    return out;
}

TEST(Png, RoundTripIsExactAndDeterministic) {
    for (int channels : {3, 4}) {
        const Image image = gradient(37, 11, channels);
        const Bytes bytes = encode_png(image);
        EXPECT_EQ(decode_png(bytes, "memory"), image);
        EXPECT_EQ(encode_png(image), bytes);
    }
}

TEST(Png, ReadsEveryKind) {
    EXPECT_THAT(decode_png(png_of(2, 1, 8, PNG_COLOR_TYPE_GRAY, 0, {{9, 200}}), "gray").pixels,
                ElementsAre(9, 9, 9, 200, 200, 200));
    EXPECT_THAT(decode_png(png_of(3, 1, 1, PNG_COLOR_TYPE_GRAY, 0, {{0xA0}}), "one bit").pixels,
                ElementsAre(255, 255, 255, 0, 0, 0, 255, 255, 255));
    EXPECT_THAT(
        decode_png(png_of(1, 1, 8, PNG_COLOR_TYPE_GRAY_ALPHA, 0, {{9, 77}}), "gray alpha").pixels,
        ElementsAre(9, 9, 9, 77));
    EXPECT_THAT(
        decode_png(png_of(1, 1, 16, PNG_COLOR_TYPE_RGB, 0, {{1, 255, 2, 128, 3, 0}}), "16 bit")
            .pixels,
        ElementsAre(1, 2, 3));  // the high bytes
    const auto palette = [](bool transparent) {
        return [transparent](png_structp png, png_infop info) {
            const png_color colours[2] = {{10, 20, 30}, {40, 50, 60}};
            png_set_PLTE(png, info, colours, 2);
            const png_byte alpha[1] = {5};
            if (transparent) png_set_tRNS(png, info, alpha, 1, nullptr);
        };
    };
    EXPECT_THAT(
        decode_png(png_of(2, 1, 1, PNG_COLOR_TYPE_PALETTE, 0, {{0x40}}, palette(false)), "palette")
            .pixels,
        ElementsAre(10, 20, 30, 40, 50, 60));
    EXPECT_THAT(
        decode_png(png_of(2, 1, 1, PNG_COLOR_TYPE_PALETTE, 0, {{0x40}}, palette(true)), "palette")
            .pixels,
        ElementsAre(10, 20, 30, 5, 40, 50, 60, 255));
    const auto key = [](png_structp png, png_infop info) {
        png_color_16 colour{};
        colour.red = 1, colour.green = 2, colour.blue = 3;
        png_set_tRNS(png, info, nullptr, 0, &colour);
    };
    EXPECT_THAT(
        decode_png(png_of(2, 1, 8, PNG_COLOR_TYPE_RGB, 0, {{1, 2, 3, 4, 5, 6}}, key), "key").pixels,
        ElementsAre(1, 2, 3, 0, 4, 5, 6, 255));

    const Image image = gradient(19, 13, 3);
    std::vector<Bytes> rows;
    for (int y = 0; y < image.height; ++y)
        rows.emplace_back(image.at(0, y), image.at(0, y) + 3 * image.width);
    EXPECT_EQ(
        decode_png(png_of(19, 13, 8, PNG_COLOR_TYPE_RGB, PNG_INTERLACE_ADAM7, rows), "interlaced"),
        image);
}

void expect_refused(const Bytes& bytes, const std::string& named) {
    try {
        decode_png(bytes, "dir/picture.png");
        FAIL() << "expected an error: " << named;
    } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::input);
        EXPECT_THAT(error.message(), HasSubstr("dir/picture.png"));
        EXPECT_THAT(error.message(), HasSubstr(named));
    }
}

TEST(Png, RefusesDamagedFiles) {
    const Bytes good = encode_png(gradient(40, 30, 3));
    for (std::size_t size : {std::size_t{20}, good.size() / 2, good.size() - 14, good.size() - 1}) {
        expect_refused(Bytes(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(size)),
                       "truncated");
    }
    Bytes flipped = good;
    flipped[good.size() / 2] ^= 0x10;
    expect_refused(flipped, "cannot be read as PNG");
    expect_refused({'G', 'I', 'F', '8', '9', 'a', 0, 0, 0}, "without its signature");
    expect_refused({}, "without its signature");
    Bytes huge = good;
    huge[16] = 0x7F;  // the width; its checksum is wrong too
    expect_refused(huge, "cannot be read as PNG");
    EXPECT_THROW(read_png("/nonexistent/picture.png"), Error);
    EXPECT_THROW(write_png("/nonexistent/picture.png", gradient(2, 2, 3)), Error);
    EXPECT_THROW(encode_png(Image(2, 2, 1)), Error);
}

TEST(Png, WritesFiles) {
    const auto path = std::filesystem::temp_directory_path() /
                      ("atelier-png-" + std::to_string(::getpid()) + ".png");
    write_png(path, gradient(5, 4, 4));
    EXPECT_EQ(read_png(path), gradient(5, 4, 4));
    std::filesystem::remove(path);
}

TEST(ContactSheet, PlacesPicturesAndCaptions) {
    const Image red(8, 6, 3, 200), clear(4, 4, 4, 0);
    ContactSheet sheet;
    sheet.rows = {{&red, &clear}, {nullptr, &red}};
    sheet.margin = 2;
    const Image plain = contact_sheet(sheet);
    EXPECT_EQ(plain.width, 2 + 2 * 10);
    EXPECT_EQ(plain.height, 2 + 2 * 8);
    EXPECT_EQ(plain.channels, 3);
    EXPECT_EQ(*plain.at(2, 2), 200);
    EXPECT_EQ(*plain.at(1, 2), 255);
    EXPECT_EQ(*plain.at(2, 10), 255);  // the empty cell
    EXPECT_EQ(*plain.at(15, 4), 255);  // transparent over white
    EXPECT_EQ(*plain.at(12, 10), 200);

    sheet.row_captions = {"base \u4e00 a very long caption that is cut", ""};
    sheet.column_captions = {"A", "B"};
    const Image captioned = contact_sheet(sheet);
    EXPECT_EQ(captioned.width, plain.width);
    EXPECT_EQ(captioned.height, plain.height + 3 * 10);
    EXPECT_EQ(*captioned.at(2, 2 + 2 * 10), 200);
    int ink = 0;
    for (int y = 2; y < 9; ++y) {
        for (int x = 2; x < 7; ++x) ink += *captioned.at(x, y) == 0;
    }
    EXPECT_EQ(ink, 18);  // the letter A of 5 × 7
    EXPECT_THROW(contact_sheet({}), Error);
}

TEST(ContactSheet, SaysWhichPicturesItCanHold) {
    ContactSheet sheet;
    sheet.rows = {{nullptr, nullptr, nullptr}, {nullptr}};
    sheet.row_captions = {"one", "two"};
    sheet.column_captions = {"A"};
    const auto [width, height] = largest_cell(sheet, 100);
    const Image largest(width, height, 3), wider(width + 1, height, 3), higher(width, height + 1, 3);
    sheet.rows[0][2] = &largest;
    const Image held = contact_sheet(sheet);
    EXPECT_LE(held.width, 100);
    EXPECT_LE(held.height, 100);
    sheet.rows[0][2] = &wider;
    EXPECT_GT(contact_sheet(sheet).width, 100);
    sheet.rows[0][2] = &higher;
    EXPECT_GT(contact_sheet(sheet).height, 100);
    EXPECT_THROW(largest_cell(sheet, 20), Error);
}

}  // namespace
}  // namespace atelier::io
