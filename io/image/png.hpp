#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "io/image/image.hpp"

namespace atelier::io {

/// Largest side and area (pixels) that read_png accepts: a damaged header must not take the memory.
inline constexpr int max_png_side = 32768;
inline constexpr std::int64_t max_png_area = std::int64_t{1} << 27;

/// Reads any PNG (gray, palette, RGB; 1 to 16 bits; tRNS; interlaced) as RGB, or as RGBA where the
/// file has alpha or a transparent colour. 16-bit samples keep their high byte; gamma, colour
/// profiles and orientation are ignored: all as Pillow does. Throws Error(input) naming the file if
/// it is missing, no PNG, truncated, damaged or too large.
Image read_png(const std::filesystem::path& path);
/// Width and height of a PNG from its first bytes. Throws Error(input) naming the file if it is missing or no PNG.
std::array<int, 2> read_png_size(const std::filesystem::path& path);
/// The same as read_png() from memory; `name` stands for the file in errors.
Image decode_png(std::span<const std::uint8_t> bytes, const std::string& name);

/// 8-bit RGB or RGBA PNG, not interlaced, without time or text: equal pictures give equal bytes
/// (with the same libpng and zlib). Throws Error(internal) for other channel counts or no pixels.
std::vector<std::uint8_t> encode_png(const Image& image);
/// encode_png(image) as an address that holds it: "data:image/png;base64,…" (RFC 2397).
std::string png_data_url(const Image& image);
/// Writes encode_png(image) to `path`. Not atomic: publishing is up to the caller. Throws
/// Error(io).
void write_png(const std::filesystem::path& path, const Image& image);

}  // namespace atelier::io
