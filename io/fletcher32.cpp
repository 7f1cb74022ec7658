#include "io/fletcher32.hpp"

#include <cstring>

namespace atelier::io {
namespace {

/// Below 65536, congruent modulo 65535; 0 only for 0.
std::uint64_t fold(std::uint64_t x) {
    while (x >> 16 != 0) x = (x & 0xffff) + (x >> 16);
    return x;
}

}  // namespace

void Fletcher32::update(const void* data, std::size_t bytes) {
    // Blocks so short that 32-bit sums of weighted words cannot overflow: 256 * 65535 a word, 32 words a lane of eight.
    constexpr std::size_t block = 256;
    const auto* from = static_cast<const unsigned char*>(data);
    std::size_t words = bytes / 2;
    while (words > 0) {
        const std::size_t count = words < block ? words : block;
        std::uint16_t raw[block];
        std::memcpy(raw, from, count * 2);
        std::uint64_t sum = 0, weighted = 0;
        if (count == block) {
            std::uint32_t s[8] = {}, w[8] = {};
            for (std::uint32_t i = 0; i < block; i += 8)
                for (std::uint32_t j = 0; j < 8; ++j) {
                    const std::uint32_t word = static_cast<std::uint16_t>(raw[i + j] << 8 | raw[i + j] >> 8);
                    s[j] += word;
                    w[j] += static_cast<std::uint32_t>(block - i - j) * word;
                }
            for (int j = 0; j < 8; ++j) sum += s[j], weighted += w[j];
        } else {
            for (std::size_t i = 0; i < count; ++i) {
                const std::uint64_t word = static_cast<std::uint16_t>(raw[i] << 8 | raw[i] >> 8);
                sum += word;
                weighted += (count - i) * word;
            }
        }
        sums_ = fold(sums_ + count * sum_ + weighted);
        sum_ = fold(sum_ + sum);
        from += count * 2;
        words -= count;
    }
    if (bytes % 2 != 0) {
        sum_ = fold(sum_ + (static_cast<std::uint64_t>(*from) << 8));
        sums_ = fold(sums_ + sum_);
    }
}

std::array<std::byte, 4> Fletcher32::stored() const {
    std::array<std::byte, 4> bytes{};
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(value() >> 8 * i);
    return bytes;
}

std::uint32_t Fletcher32::value() const { return static_cast<std::uint32_t>(sums_ << 16 | sum_); }

}  // namespace atelier::io
