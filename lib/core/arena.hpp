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

}  // namespace atelier
