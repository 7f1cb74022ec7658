#pragma once

#include <algorithm>
#include <cstddef>
#include <string>

#include "core/bytes.hpp"
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
    /// Throws Error(io) if the system, or the device, cannot give so many.
    Arena(std::string name, const Bytes& bytes);
    /// One of the size that `build(arena)` takes, with that already taken of it.
    template <typename Build>
    static Arena of(std::string name, Build&& build) {
        Arena plan = measuring(name);
        build(plan);
        Arena arena(std::move(name), {plan.used(), plan.used(Device::cuda)});
        build(arena);
        return arena;
    }
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
    /// Of both kinds of memory.
    Bytes bytes() const { return {host_.capacity, device_.capacity}; }

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
    static Bytes measure(Build&& build) {
        Arena arena = Arena::measuring("plan");
        build(arena);
        return {arena.used(), arena.used(Device::cuda)};
    }
    /// What was built before is void afterwards.
    void reserve(const Bytes& bytes) {
        arena_.release(0);
        const Bytes all = larger(bytes, arena_.bytes());
        if (all == arena_.bytes()) return;
        std::string name = arena_.name();
        arena_ = Arena("", 0);  // given back before the larger one is taken
        arena_ = Arena(std::move(name), all);
    }
    /// What `build` makes of the memory it asks for; what was built before is void.
    template <typename Build>
    auto build(Build&& build) {
        reserve(measure(build));
        return build(arena_);
    }
    void give_back() { arena_ = Arena(arena_.name(), 0); }

  private:
    Arena arena_;
};

}  // namespace atelier
