// A picture as it is, and with the checksums of its chunks set right, so that what is behind them is reached; what is read and written is
// read again to the same.
#include "io/image/png.hpp"

#include <zlib.h>

#include <vector>

#include "fuzz/target.hpp"

namespace atelier::fuzz {
namespace {

std::uint32_t number(const std::uint8_t* at) {
    return static_cast<std::uint32_t>(at[0]) << 24 | static_cast<std::uint32_t>(at[1]) << 16 | static_cast<std::uint32_t>(at[2]) << 8 | at[3];
}

/// A chunk: length, name, data, checksum of name and data.
void set_checksums(std::vector<std::uint8_t>& png) {
    for (std::size_t at = 8; at + 12 <= png.size();) {
        const std::size_t length = number(&png[at]);
        if (length > png.size() - at - 12) return;
        const auto sum = static_cast<std::uint32_t>(crc32(0, &png[at + 4], static_cast<uInt>(length + 4)));
        for (std::size_t i = 0; i < 4; ++i) png[at + 8 + length + i] = static_cast<std::uint8_t>(sum >> (24 - 8 * i));
        at += 12 + length;
    }
}

void read(std::span<const std::uint8_t> bytes) {
    io::Image image;
    read_or_refuse([&] { image = io::decode_png(bytes, "fuzz.png"); });
    if (!image.pixels.empty() && image.pixels.size() < 1 << 20 && !(io::decode_png(io::encode_png(image), "again") == image)) std::abort();
}

}  // namespace

void run_one(std::span<const std::uint8_t> bytes) {
    read(bytes);
    std::vector<std::uint8_t> right(bytes.begin(), bytes.end());
    set_checksums(right);
    read(right);
}

}  // namespace atelier::fuzz
