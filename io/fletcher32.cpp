#include "io/fletcher32.hpp"

#include <algorithm>
#include <cstring>

namespace atelier::io {
namespace {

/// Below 65536, congruent modulo 65535; 0 only for 0.
std::uint64_t fold(std::uint64_t x) {
    while (x >> 16 != 0) x = (x & 0xffff) + (x >> 16);
    return x;
}

// Words are read as they lie in a little-endian memory: exchanging a word's two bytes multiplies it by 256 modulo 65535.
std::uint64_t word_at(const unsigned char* from, std::size_t i) {
    std::uint16_t word;
    std::memcpy(&word, from + 2 * i, sizeof word);
    return word;
}

/// Of the words w_i of a block, congruent modulo 65535: sum of w_i, and sum of (count - i) w_i, which are the sums' sums.
struct Sums {
    std::uint64_t sum = 0, weighted = 0;
};

Sums sums_of(const unsigned char* from, std::size_t count) {
    Sums of;
    for (std::size_t i = 0; i < count; ++i) {
        of.sum += word_at(from, i);
        of.weighted += (count - i) * word_at(from, i);
    }
    return {256 * fold(of.sum), 256 * fold(of.weighted)};
}

// A block's words stand in rows of 16: 8 lanes of two words. 256 rows: a lane's sums of sums stay below 65535 * 256 * 257 / 2 < 2^32.
constexpr std::size_t lanes = 8, rows = 256, block = 2 * lanes * rows;
using Lanes = std::uint32_t __attribute__((vector_size(4 * lanes)));

Sums sums_of_block(const unsigned char* from) {
    Lanes sum[2] = {}, sums[2] = {};  // of a lane's first and second words
    for (std::size_t row = 0; row < rows; ++row, from += sizeof(Lanes)) {
        Lanes words;
        std::memcpy(&words, from, sizeof words);
        sums[0] += sum[0] += words & 0xffff;
        sums[1] += sum[1] += words >> 16;
    }
    Sums of;
    std::uint64_t ahead = 0;  // a word's weight is 16 (rows - row) - its place in the row; in the sums of sums it is rows - row
    for (std::size_t i = 0; i < 2 * lanes; ++i) {
        of.sum += sum[i % 2][i / 2];
        of.weighted += 2 * lanes * sums[i % 2][i / 2];
        ahead += i * sum[i % 2][i / 2];
    }
    of.weighted -= ahead;
    return {256 * fold(of.sum), 256 * fold(of.weighted)};
}

}  // namespace

void Fletcher32::update(const void* data, std::size_t bytes) {
    const auto* from = static_cast<const unsigned char*>(data);
    std::size_t words = bytes / 2;
    while (words > 0) {
        const std::size_t count = std::min(words, block);
        const Sums of = count == block ? sums_of_block(from) : sums_of(from, count);
        sums_ = fold(sums_ + count * sum_ + of.weighted);
        sum_ = fold(sum_ + of.sum);
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
