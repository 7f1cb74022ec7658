#pragma once

#include <cstdint>
#include <vector>

namespace atelier::io {

/// A picture in memory: 8 bits a channel, row-major [height, width, channels], without padding.
/// 3 channels are RGB, 4 are RGBA with straight (not premultiplied) alpha.
struct Image {
    int width = 0;
    int height = 0;
    int channels = 0;
    std::vector<std::uint8_t> pixels;

    Image() = default;
    Image(int wide, int high, int channel_count, std::uint8_t value = 0)
        : width(wide),
          height(high),
          channels(channel_count),
          pixels(static_cast<std::size_t>(wide) * static_cast<std::size_t>(high) *
                     static_cast<std::size_t>(channel_count),
                 value) {}
    bool empty() const { return pixels.empty(); }
    std::uint8_t* at(int x, int y) { return pixels.data() + offset(x, y); }
    const std::uint8_t* at(int x, int y) const { return pixels.data() + offset(x, y); }
    bool operator==(const Image& other) const = default;

  private:
    std::size_t offset(int x, int y) const {
        return (static_cast<std::size_t>(y) * static_cast<std::size_t>(width) +
                static_cast<std::size_t>(x)) *
               static_cast<std::size_t>(channels);
    }
};

}  // namespace atelier::io
