#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace atelier {

/// Philox4x32-10 (Salmon et al., SC 2011): four 32-bit words from a 128-bit counter and a 64-bit key.
std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key);

/// What a stream of random numbers is for. Values are part of the file format: never renumber.
enum class RandomUse : std::uint32_t {
    initial_noise = 1,
    step_noise = 2,
    step_choice = 3,
    prompt_choice = 4,
    bootstrap = 5,
    parameter_init = 6,
    world = 7,
    retry_jitter = 8,
    data_order = 9,
    judge_token = 10,
    picture_size = 11,
    test = 99,
};

/// A key of 128 bits made from meanings (seed, use, iteration, prompt, member, step), never from the
/// rank: the same pictures come out at any number of ranks. Words are mixed with xxHash-like
/// avalanche (splitmix64), so keys of different meanings are unrelated.
struct RandomKey {
    std::uint64_t low = 0, high = 0;
    bool operator==(const RandomKey&) const = default;
};
RandomKey random_key(std::uint64_t seed, RandomUse use, std::uint64_t a = 0, std::uint64_t b = 0,
                     std::uint64_t c = 0, std::uint64_t d = 0);

/// Sequential reader of one key's stream; position n depends on the key and n alone.
class Random {
  public:
    explicit Random(RandomKey key) : key_(key) {}
    std::uint32_t next_u32();
    std::uint64_t next_u64();
    /// Uniform in [0, 1), 53 bits.
    double uniform();
    /// Uniform in [low, high).
    double between(double low, double high) { return low + (high - low) * uniform(); }
    /// Unbiased integer in [0, bound), bound >= 1.
    std::uint64_t below(std::uint64_t bound);
    /// Standard normal (Box-Muller in double).
    double normal();

  private:
    RandomKey key_;
    std::uint64_t block_ = 0;
    std::array<std::uint32_t, 4> words_{};
    int left_ = 0;
    double spare_ = 0;
    bool has_spare_ = false;
};

/// Fills with standard normals; element i depends on (key, i) alone. Box-Muller in double, stored as float.
void fill_normal(RandomKey key, std::span<float> out);

}  // namespace atelier
