#pragma once

#include <concepts>
#include <span>
#include <vector>

#include "core/arena.hpp"
#include "core/philox.hpp"
#include "model/dit/dit.hpp"

namespace atelier::pipeline {

/// Prompts whose `each` targets on a grid run together with those of others: as many as fill a micro-batch, in passes of no more than 1,024 targets' tokens,
/// beyond which products gain nothing and memory is taken for nothing; at least one.
std::size_t prompts_together(std::int64_t micro_batch, std::int64_t each, const dit::Grid& target);

/// Targets that run together: states and velocities where the model runs, and the way from there to stored trajectories
/// (host memory, [members, K, tokens * channels]) and back.
class MicroBatch {
  public:
    /// Throws Error(usage) for a model whose prefix depends on the timestep: a trained trajectory's prefix runs once for all of its steps.
    MicroBatch(const dit::Dit& dit, const dit::Grid& target, int size, Arena& arena);

    int size() const { return static_cast<int>(times_.size()); }
    /// Numbers of a member's state.
    std::int64_t sample_size() const { return x.size(1) * x.size(2); }
    /// Room for one more number of each state, or of one member's.
    Tensor take_states(Arena& arena) const { return arena.take_f32(x.shape(), device_); }
    Tensor take_state(Arena& arena) const { return arena.take_f32({sample_size()}, device_); }

    /// A member's numbers of a tensor of the micro-batch's shape: [tokens * channels].
    Tensor member(const Tensor& of, std::int64_t b) const { return of.slice(b, b + 1).reshaped({sample_size()}); }
    /// Those of a stored trajectory at place `at`, counted in states.
    Tensor stored(std::span<const float> all, std::int64_t at) const { return Tensor::of(all.data() + at * sample_size(), {sample_size()}); }
    /// States number k of `per_member`, of the members from `first` on, into x.
    void load(std::span<const float> states, std::int64_t first, std::int64_t per_member, std::int64_t k) const;
    /// Standard normal numbers of a key each, `key_of(b)`, into noise. The host draws them, while a device computes what was queued before.
    template <typename KeyOf>
        requires std::invocable<KeyOf, std::int64_t>
    void draw(KeyOf&& key_of) {
        for (std::int64_t b = 0; b < size(); ++b) keys_[static_cast<std::size_t>(b)] = key_of(b);
        draw_numbers();
    }
    /// Numbers in host memory where the model runs: themselves, or a copy in `room`.
    std::span<const float> bring(const Tensor& from, const Tensor& room) const;
    /// The model's time of every target: the stored sigma itself.
    std::span<const float> times(float sigma) {
        return times([=](std::int64_t) { return sigma; });
    }
    template <typename SigmaOf>
        requires std::invocable<SigmaOf, std::int64_t>
    std::span<const float> times(SigmaOf&& sigma_of) {
        for (std::int64_t b = 0; b < size(); ++b) times_[static_cast<std::size_t>(b)] = sigma_of(b);
        return times_;
    }

    Tensor x, v, noise;  ///< [size, tokens, channels]
    Tensor next;         ///< [tokens * channels]

  private:
    void draw_numbers() const;
    Device device_;
    Tensor host_noise_;
    std::vector<float> times_;
    std::vector<RandomKey> keys_;
};

}  // namespace atelier::pipeline
