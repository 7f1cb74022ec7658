#pragma once

#include <algorithm>
#include <cstddef>
#include <string>

#include "core/tensor.hpp"

namespace atelier {

/// One contiguous allocation handed out front to back, 64-byte aligned, zero at first; beside it, where asked for, one in a
/// device's memory (core/device.hpp) that is handed out the same way.
///
/// Memory is planned before it is taken: the same layout code runs first on a measuring arena
/// (`Arena::measuring()`: hands out views without memory and counts), then on a real one of
/// `used()` bytes. Nothing is allocated inside a step loop.
class Arena {
  public:
    static constexpr std::size_t alignment = 64, device_alignment = 256;
    static Arena measuring(std::string name);
    /// Throws Error(io) if the system cannot give `bytes`, or the device `device_bytes`.
    Arena(std::string name, std::size_t bytes, std::size_t device_bytes = 0);
    ~Arena();
    Arena(Arena&& other) noexcept;
    Arena& operator=(Arena&& other) noexcept;
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    /// The next `shape` numbers. Throws Error(internal) when the plan was too small.
    Tensor take(DType dtype, Shape shape, Device device = Device::cpu);
    Tensor take_f32(Shape shape, Device device = Device::cpu) { return take(DType::f32, shape, device); }

    /// Position to go back to in one of the memories: everything taken of it after a mark is given back by `release(mark, device)`.
    std::size_t mark(Device device = Device::cpu) const { return block(device).used; }
    void release(std::size_t mark, Device device);
    /// Of host memory; release(0) gives back all of both.
    void release(std::size_t mark);

    const std::string& name() const { return name_; }
    bool is_measuring() const { return measuring_; }
    std::size_t used(Device device = Device::cpu) const { return block(device).used; }
    std::size_t peak(Device device = Device::cpu) const { return block(device).peak; }
    std::size_t capacity(Device device = Device::cpu) const { return block(device).capacity; }

  private:
    struct Block {
        std::byte* base = nullptr;
        std::size_t capacity = 0, used = 0, peak = 0;
    };
    Arena() = default;
    const Block& block(Device device) const { return device == Device::cpu ? host_ : device_; }
    std::string name_;
    Block host_, device_;
    bool measuring_ = false;
};

/// One arena that serves one plan after another: it grows to the largest and is never given back in between. What it gives out
/// isn't zero.
class Workspace {
  public:
    explicit Workspace(std::string name) : arena_(std::move(name), 0) {}
    /// Bytes that `build(arena)` takes.
    template <typename Build>
    static std::size_t measure(Build&& build) {
        Arena arena = Arena::measuring("plan");
        build(arena);
        return arena.used();
    }
    /// What was built before is void afterwards.
    void reserve(std::size_t bytes, std::size_t device_bytes = 0) {
        arena_.release(0);
        if (bytes <= arena_.capacity() && device_bytes <= arena_.capacity(Device::cuda)) return;
        bytes = std::max(bytes, arena_.capacity());
        device_bytes = std::max(device_bytes, arena_.capacity(Device::cuda));
        std::string name = arena_.name();
        arena_ = Arena("", 0);  // given back before the larger one is taken
        arena_ = Arena(std::move(name), bytes, device_bytes);
    }
    /// What `build` makes of the memory it asks for; what was built before is void.
    template <typename Build>
    auto build(Build&& build) {
        Arena plan = Arena::measuring("plan");
        build(plan);
        reserve(plan.used(), plan.used(Device::cuda));
        return build(arena_);
    }
    std::size_t capacity() const { return arena_.capacity(); }
    void give_back() { arena_ = Arena(arena_.name(), 0); }

  private:
    Arena arena_;
};

}  // namespace atelier
