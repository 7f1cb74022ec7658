#pragma once

#include <cstddef>
#include <string>

#include "core/tensor.hpp"

namespace atelier {

/// One contiguous allocation handed out front to back, 64-byte aligned, zero at first.
///
/// Memory is planned before it is taken: the same layout code runs first on a measuring arena
/// (`Arena::measuring()`: hands out views without memory and counts), then on a real one of
/// `used()` bytes. Nothing is allocated inside a step loop.
class Arena {
  public:
    static constexpr std::size_t alignment = 64;
    static Arena measuring(std::string name);
    /// Throws Error(io) if the system cannot give `bytes`.
    Arena(std::string name, std::size_t bytes);
    ~Arena();
    Arena(Arena&& other) noexcept;
    Arena& operator=(Arena&& other) noexcept;
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    /// The next `shape` numbers. Throws Error(internal) when the plan was too small.
    Tensor take(DType dtype, Shape shape);
    Tensor take_f32(Shape shape) { return take(DType::f32, shape); }

    /// Position to go back to: everything taken after a mark is given back by `release(mark)`.
    std::size_t mark() const { return used_; }
    void release(std::size_t mark);

    const std::string& name() const { return name_; }
    bool is_measuring() const { return measuring_; }
    std::size_t used() const { return used_; }
    std::size_t peak() const { return peak_; }
    std::size_t capacity() const { return capacity_; }

  private:
    Arena() = default;
    std::string name_;
    std::byte* base_ = nullptr;
    std::size_t capacity_ = 0, used_ = 0, peak_ = 0;
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
    void reserve(std::size_t bytes) {
        arena_.release(0);
        if (bytes <= arena_.capacity()) return;
        std::string name = arena_.name();
        arena_ = Arena("", 0);  // given back before the larger one is taken
        arena_ = Arena(std::move(name), bytes);
    }
    /// What `build` makes of the memory it asks for; what was built before is void.
    template <typename Build>
    auto build(Build&& build) {
        reserve(measure(build));
        return build(arena_);
    }
    std::size_t capacity() const { return arena_.capacity(); }
    void give_back() { arena_ = Arena(arena_.name(), 0); }

  private:
    Arena arena_;
};

}  // namespace atelier
