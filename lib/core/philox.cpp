#include "core/philox.hpp"

#include <cmath>
#include <numbers>

#include "core/error.hpp"

namespace atelier {
namespace {

std::uint64_t mix(std::uint64_t x) {  // splitmix64's finaliser
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

std::array<std::uint32_t, 4> block(RandomKey key, std::uint64_t index) {
    return philox4x32({static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32),
                       static_cast<std::uint32_t>(key.high), static_cast<std::uint32_t>(key.high >> 32)},
                      {static_cast<std::uint32_t>(key.low), static_cast<std::uint32_t>(key.low >> 32)});
}

/// Two normals from 2 x 64 bits. u1 in (0, 1], so the logarithm is finite.
std::array<double, 2> box_muller(const std::array<std::uint32_t, 4>& w) {
    const std::uint64_t a = (static_cast<std::uint64_t>(w[1]) << 32) | w[0];
    const std::uint64_t b = (static_cast<std::uint64_t>(w[3]) << 32) | w[2];
    const double u1 = (static_cast<double>(a >> 11) + 1.0) * 0x1.0p-53;
    const double u2 = static_cast<double>(b >> 11) * 0x1.0p-53;
    const double radius = std::sqrt(-2.0 * std::log(u1));
    const double angle = 2.0 * std::numbers::pi * u2;
    return {radius * std::cos(angle), radius * std::sin(angle)};
}

}  // namespace

std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> c, std::array<std::uint32_t, 2> k) {
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t p0 = 0xD2511F53ull * c[0];
        const std::uint64_t p1 = 0xCD9E8D57ull * c[2];
        c = {static_cast<std::uint32_t>(p1 >> 32) ^ c[1] ^ k[0], static_cast<std::uint32_t>(p1),
             static_cast<std::uint32_t>(p0 >> 32) ^ c[3] ^ k[1], static_cast<std::uint32_t>(p0)};
        k[0] += 0x9E3779B9u;
        k[1] += 0xBB67AE85u;
    }
    return c;
}

RandomKey random_key(std::uint64_t seed, RandomUse use, std::uint64_t a, std::uint64_t b, std::uint64_t c,
                     std::uint64_t d) {
    RandomKey key{0x6174656c69657231ull, 0x72616e646f6d6b31ull};
    for (std::uint64_t word : {seed, static_cast<std::uint64_t>(use), a, b, c, d}) {
        key.low = mix(key.low ^ word);
        key.high = mix(key.high + mix(word ^ key.low));
    }
    return key;
}

std::uint32_t Random::next_u32() {
    if (left_ == 0) {
        words_ = block(key_, block_++);
        left_ = 4;
    }
    return words_[4 - left_--];
}

std::uint64_t Random::next_u64() {
    const std::uint64_t low = next_u32();
    return (static_cast<std::uint64_t>(next_u32()) << 32) | low;
}

double Random::uniform() { return static_cast<double>(next_u64() >> 11) * 0x1.0p-53; }

std::uint64_t Random::below(std::uint64_t bound) {
    ATELIER_CHECK(bound >= 1, "below(0) has no value");
    const std::uint64_t limit = UINT64_MAX - (UINT64_MAX % bound + 1) % bound;
    for (;;) {
        const std::uint64_t x = next_u64();
        if (x <= limit) return x % bound;
    }
}

double Random::normal() {
    if (has_spare_) {
        has_spare_ = false;
        return spare_;
    }
    std::array<std::uint32_t, 4> words;
    for (auto& word : words) word = next_u32();
    const auto pair = box_muller(words);
    spare_ = pair[1];
    has_spare_ = true;
    return pair[0];
}

void fill_normal(RandomKey key, std::span<float> out) {
    for (std::size_t i = 0; i < out.size(); i += 2) {
        const auto pair = box_muller(block(key, i / 2));
        out[i] = static_cast<float>(pair[0]);
        if (i + 1 < out.size()) out[i + 1] = static_cast<float>(pair[1]);
    }
}

}  // namespace atelier
