#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "core/error.hpp"

namespace atelier {

enum class DType : std::uint8_t { f32, f64, bf16, f16, i64, i32, u64, u32, u8 };
enum class Device : std::uint8_t { cpu, cuda };

std::size_t size_of(DType dtype);
const char* name_of(DType dtype);

template <typename T>
struct DTypeOf;
template <> struct DTypeOf<float> { static constexpr DType value = DType::f32; };
template <> struct DTypeOf<double> { static constexpr DType value = DType::f64; };
template <> struct DTypeOf<std::int64_t> { static constexpr DType value = DType::i64; };
template <> struct DTypeOf<std::int32_t> { static constexpr DType value = DType::i32; };
template <> struct DTypeOf<std::uint64_t> { static constexpr DType value = DType::u64; };
template <> struct DTypeOf<std::uint32_t> { static constexpr DType value = DType::u32; };
template <> struct DTypeOf<std::uint8_t> { static constexpr DType value = DType::u8; };

/// Up to six extents, outermost first.
class Shape {
  public:
    static constexpr int max_rank = 6;
    Shape() = default;
    Shape(std::initializer_list<std::int64_t> extents);
    explicit Shape(std::span<const std::int64_t> extents);
    int rank() const { return rank_; }
    std::int64_t operator[](int axis) const;
    std::int64_t elements() const;
    std::span<const std::int64_t> extents() const { return {extents_.data(), static_cast<std::size_t>(rank_)}; }
    bool operator==(const Shape& other) const = default;
    std::string str() const;  ///< "[2, 64, 16]"

  private:
    std::array<std::int64_t, max_rank> extents_{};
    int rank_ = 0;
};

/// A view of contiguous row-major numbers that somebody else owns (an arena, a mapped file, a vector).
class Tensor {
  public:
    Tensor() = default;
    Tensor(void* data, DType dtype, Shape shape, Device device = Device::cpu)
        : data_(data), shape_(shape), dtype_(dtype), device_(device) {}
    template <typename T>
    static Tensor of(T* data, Shape shape) {
        return Tensor(const_cast<std::remove_const_t<T>*>(data), DTypeOf<std::remove_const_t<T>>::value, shape);
    }
    bool empty() const { return data_ == nullptr; }
    DType dtype() const { return dtype_; }
    Device device() const { return device_; }
    const Shape& shape() const { return shape_; }
    std::int64_t size(int axis) const { return shape_[axis]; }
    std::int64_t elements() const { return shape_.elements(); }
    std::size_t bytes() const { return static_cast<std::size_t>(elements()) * size_of(dtype_); }
    void* raw() const { return data_; }
    template <typename T>
    T* as() const {
        ATELIER_CHECK(dtype_ == DTypeOf<std::remove_const_t<T>>::value, "a tensor of {} was read as {}",
                      name_of(dtype_), name_of(DTypeOf<std::remove_const_t<T>>::value));
        return static_cast<T*>(data_);
    }
    float* f32() const { return as<float>(); }
    /// The same numbers under another shape of as many elements.
    Tensor reshaped(Shape shape) const;
    /// Entries [begin, end) of axis 0.
    Tensor slice(std::int64_t begin, std::int64_t end) const;

  private:
    void* data_ = nullptr;
    Shape shape_;
    DType dtype_ = DType::f32;
    Device device_ = Device::cpu;
};

}  // namespace atelier
