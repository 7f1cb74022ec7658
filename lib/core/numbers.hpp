#pragma once

#include <span>

#include "core/arena.hpp"
#include "core/device.hpp"

namespace atelier {

/// A tensor's fp32 numbers in memory order, where they lie.
inline std::span<float> numbers(const Tensor& t) { return {t.f32(), static_cast<std::size_t>(t.elements())}; }
/// `count` of them from `first` on.
inline std::span<float> numbers(const Tensor& t, std::int64_t first, std::int64_t count) {
    return numbers(t).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
}

/// A flat vector of fp32 numbers with its own memory, on a device or not; zero at first.
class Numbers {
  public:
    Numbers() = default;
    explicit Numbers(std::int64_t count, Device device = Device::cpu)
        : arena_("numbers", device == Device::cpu ? Bytes(bytes(count)) : Bytes(0, bytes(count))),
          values_(arena_.take_f32({count}, device)) {}
    /// A copy of numbers that lie anywhere.
    Numbers(const Tensor& from, Device device) : Numbers(from.elements(), device) { transfer(from.reshaped({from.elements()}), values_); }

    bool empty() const { return values_.empty(); }
    std::int64_t size() const { return empty() ? 0 : values_.elements(); }
    const Tensor& tensor() const { return values_; }
    float* data() const { return values_.f32(); }
    std::span<float> span() const { return {data(), static_cast<std::size_t>(size())}; }
    /// Of memory that so many take.
    static std::size_t bytes(std::int64_t count) { return static_cast<std::size_t>(count) * sizeof(float) + Arena::device_alignment; }

  private:
    Arena arena_{"numbers", Bytes()};
    Tensor values_;
};

}  // namespace atelier
