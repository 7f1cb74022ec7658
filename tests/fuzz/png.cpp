// A picture; what is read and written is read again to the same.
#include "io/image/png.hpp"

#include "fuzz/target.hpp"

namespace atelier::fuzz {

void run_one(std::span<const std::uint8_t> bytes) {
    read_or_refuse([&] {
        const auto image = io::decode_png(bytes, "fuzz.png");
        if (image.pixels.size() < 1 << 20 && !(io::decode_png(io::encode_png(image), "again") == image)) std::abort();
    });
}

}  // namespace atelier::fuzz
