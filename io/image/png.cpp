#include "io/image/png.hpp"

#include <png.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csetjmp>
#include <cstring>
#include <fstream>

#include "core/error.hpp"
#include "io/file_io.hpp"
#include "io/lookup.hpp"

namespace atelier::io {

namespace {

// libpng leaves by longjmp: the functions that call setjmp hold only trivial objects, and what they
// fill is owned by their caller.

struct Message {
    std::array<char, 200> text{};
};

[[noreturn]] void on_error(png_structp png, png_const_charp text) {
    auto* message = static_cast<Message*>(png_get_error_ptr(png));
    std::strncpy(message->text.data(), text, message->text.size() - 1);
    png_longjmp(png, 1);
}

void on_warning(png_structp, png_const_charp) {}

struct Source {
    const std::uint8_t* data;
    std::size_t left;
};

void read_bytes(png_structp png, png_bytep out, png_size_t count) {
    auto* source = static_cast<Source*>(png_get_io_ptr(png));
    if (source->left < count) png_error(png, "the file ends too early (truncated)");
    std::memcpy(out, source->data, count);
    source->data += count;
    source->left -= count;
}

void append_bytes(png_structp png, png_bytep data, png_size_t count) {
    static_cast<std::vector<std::uint8_t>*>(png_get_io_ptr(png))
        ->insert(static_cast<std::vector<std::uint8_t>*>(png_get_io_ptr(png))->end(), data,
                 data + count);
}

void flush_nothing(png_structp) {}

/// False with `message` set if libpng gave up.
bool decode(Source source, Image& image, Message& message) {
    png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &message, on_error, on_warning);
    png_infop info = png ? png_create_info_struct(png) : nullptr;
    if (!info || setjmp(png_jmpbuf(png))) {
        png_destroy_read_struct(&png, info ? &info : nullptr, nullptr);
        return false;
    }
    const std::size_t size = source.left;
    png_set_read_fn(png, &source, read_bytes);
    png_set_user_limits(png, max_png_side, max_png_side);
    png_set_chunk_cache_max(png, 1);  // no texts, palettes, unknown chunks: libpng would unpack and keep up to 1000 of them
    png_read_info(png, info);
    const std::int64_t area =
        std::int64_t{png_get_image_width(png, info)} * png_get_image_height(png, info);
    if (area > max_png_area) png_error(png, "the picture is larger than 2^27 pixels");
    // Deflate packs at most 1032 bytes into one: what the file cannot hold is not made room for.
    const std::int64_t bits =
        area * png_get_bit_depth(png, info) * png_get_channels(png, info);
    if (bits / 8 / 1032 > static_cast<std::int64_t>(size))
        png_error(png, "the file is too short for a picture of its size (truncated)");

    png_set_expand(png);  // palette → RGB, fewer bits → 8, tRNS → alpha
    png_set_strip_16(png);
    png_set_gray_to_rgb(png);
    const int passes = png_set_interlace_handling(png);
    png_read_update_info(png, info);
    image = Image(static_cast<int>(png_get_image_width(png, info)),
                  static_cast<int>(png_get_image_height(png, info)), png_get_channels(png, info));
    if (png_get_rowbytes(png, info) !=
        static_cast<std::size_t>(image.width) * static_cast<std::size_t>(image.channels)) {
        png_error(png, "an unexpected number of bytes in a row");
    }
    for (int pass = 0; pass < passes; ++pass) {
        for (int y = 0; y < image.height; ++y) png_read_row(png, image.at(0, y), nullptr);
    }
    png_read_end(png, nullptr);
    png_destroy_read_struct(&png, &info, nullptr);
    return true;
}

bool encode(const Image& image, std::vector<std::uint8_t>& bytes, Message& message) {
    png_structp png =
        png_create_write_struct(PNG_LIBPNG_VER_STRING, &message, on_error, on_warning);
    png_infop info = png ? png_create_info_struct(png) : nullptr;
    if (!info || setjmp(png_jmpbuf(png))) {
        png_destroy_write_struct(&png, info ? &info : nullptr);
        return false;
    }
    png_set_write_fn(png, &bytes, append_bytes, flush_nothing);
    png_set_compression_level(png, 4);  // a contact sheet: 3 % larger than at 6, in less than half the time
    png_set_user_limits(png, max_png_side, max_png_side);
    png_set_IHDR(png, info, static_cast<png_uint_32>(image.width),
                 static_cast<png_uint_32>(image.height), 8,
                 image.channels == 4 ? PNG_COLOR_TYPE_RGBA : PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
                 PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    png_write_info(png, info);
    for (int y = 0; y < image.height; ++y) png_write_row(png, image.at(0, y));
    png_write_end(png, nullptr);
    png_destroy_write_struct(&png, &info);
    return true;
}

std::string base64(const std::vector<std::uint8_t>& bytes) {
    constexpr char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string text;
    text.reserve((bytes.size() + 2) / 3 * 4);
    for (std::size_t i = 0; i < bytes.size(); i += 3) {
        std::uint32_t word = 0;
        for (std::size_t k = 0; k < 3; ++k)
            word = word << 8 | (i + k < bytes.size() ? bytes[i + k] : 0u);
        for (std::size_t k = 0; k < 4; ++k)
            text += i + k > bytes.size() ? '=' : alphabet[word >> (18 - 6 * k) & 63];
    }
    return text;
}

}  // namespace

Image decode_png(std::span<const std::uint8_t> bytes, const std::string& name) {
    ATELIER_CHECK_INPUT(
        bytes.size() >= 8 && png_sig_cmp(bytes.data(), 0, 8) == 0,
        "{}: expected a PNG picture, found {} bytes without its signature; convert it to PNG", name,
        bytes.size());
    Image image;
    Message message;
    const bool done = decode({bytes.data(), bytes.size()}, image, message);
    ATELIER_CHECK_INPUT(done, "{}: cannot be read as PNG: {}", name, message.text.data());
    return image;
}

std::array<int, 2> read_png_size(const std::filesystem::path& path) {
    // Signature, then the IHDR chunk: length, name, width and height as 32-bit integers, most significant byte first.
    std::array<unsigned char, 24> head{};
    ATELIER_CHECK_INPUT(is_file(path), "{} is missing", path.string());
    std::ifstream in(path, std::ios::binary);
    const int reason = errno;
    ATELIER_CHECK_IO(in.is_open(), "cannot open {}: {}", path.string(), std::strerror(reason));
    in.read(reinterpret_cast<char*>(head.data()), head.size());
    ATELIER_CHECK_IO(!in.bad(), "cannot read {}", path.string());
    ATELIER_CHECK_INPUT(in.gcount() == std::ssize(head) && png_sig_cmp(head.data(), 0, 8) == 0 && std::memcmp(&head[12], "IHDR", 4) == 0,
                        "{} is no PNG; convert it to PNG", path.string());
    const auto number = [&](std::size_t at) {
        return head[at] != 0 ? -1 : head[at + 1] << 16 | head[at + 2] << 8 | head[at + 3];  // no side has four bytes
    };
    const std::array<int, 2> size{number(16), number(20)};
    ATELIER_CHECK_INPUT(size[0] > 0 && size[1] > 0 && size[0] <= max_png_side && size[1] <= max_png_side, "{}: a PNG of {} x {} pixels",
                        path.string(), size[0], size[1]);
    return size;
}

Image read_png(const std::filesystem::path& path) {
    ATELIER_CHECK_INPUT(is_file(path), "{}: cannot be opened; expected a PNG picture", path.string());
    const std::string bytes = read_text(path);
    return decode_png({reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()},
                      path.string());
}

std::vector<std::uint8_t> encode_png(const Image& image) {
    ATELIER_CHECK((image.channels == 3 || image.channels == 4) && image.width > 0 &&
                      image.height > 0 &&
                      image.pixels.size() == static_cast<std::size_t>(image.width) *
                                                 static_cast<std::size_t>(image.height) *
                                                 static_cast<std::size_t>(image.channels),
                  "expected an RGB or RGBA picture, found {} x {} x {} with {} bytes", image.width,
                  image.height, image.channels, image.pixels.size());
    std::vector<std::uint8_t> bytes;
    Message message;
    ATELIER_CHECK(encode(image, bytes, message),
                  "a picture of {} x {} cannot be written as PNG: {}", image.width, image.height,
                  message.text.data());
    return bytes;
}

std::string png_data_url(const Image& image) { return "data:image/png;base64," + base64(encode_png(image)); }

void write_png(const std::filesystem::path& path, const Image& image) {
    const std::vector<std::uint8_t> bytes = encode_png(image);
    OutputFile file(path);
    file.write(bytes.data(), bytes.size());
    file.close();
}

}  // namespace atelier::io
