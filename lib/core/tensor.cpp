#include "core/tensor.hpp"

#include <fmt/ranges.h>

namespace atelier {

std::size_t size_of(DType dtype) {
    switch (dtype) {
        case DType::f64: case DType::i64: case DType::u64: return 8;
        case DType::f32: case DType::i32: case DType::u32: return 4;
        case DType::bf16: case DType::f16: return 2;
        case DType::u8: return 1;
    }
    return 0;
}

const char* name_of(DType dtype) {
    switch (dtype) {
        case DType::f32: return "f32";
        case DType::f64: return "f64";
        case DType::bf16: return "bf16";
        case DType::f16: return "f16";
        case DType::i64: return "i64";
        case DType::i32: return "i32";
        case DType::u64: return "u64";
        case DType::u32: return "u32";
        case DType::u8: return "u8";
    }
    return "?";
}

Shape::Shape(std::initializer_list<std::int64_t> extents)
    : Shape(std::span<const std::int64_t>(extents.begin(), extents.size())) {}

Shape::Shape(std::span<const std::int64_t> extents) : rank_(static_cast<int>(extents.size())) {
    ATELIER_CHECK(extents.size() <= max_rank, "a shape has at most {} axes, found {}", max_rank, extents.size());
    for (int i = 0; i < rank_; ++i) {
        ATELIER_CHECK(extents[i] >= 0, "negative extent in {}", fmt::join(extents, ", "));
        extents_[i] = extents[i];
    }
}

std::int64_t Shape::operator[](int axis) const {
    ATELIER_CHECK(axis >= 0 && axis < rank_, "axis {} of shape {}", axis, str());
    return extents_[axis];
}

std::int64_t Shape::elements() const {
    std::int64_t n = 1;
    for (int i = 0; i < rank_; ++i) n *= extents_[i];
    return n;
}

std::string Shape::str() const { return fmt::format("[{}]", fmt::join(extents(), ", ")); }

Tensor Tensor::reshaped(Shape shape) const {
    ATELIER_CHECK(shape.elements() == elements(), "{} cannot be seen as {}", shape_.str(), shape.str());
    return Tensor(data_, dtype_, shape, device_);
}

Tensor Tensor::slice(std::int64_t begin, std::int64_t end) const {
    ATELIER_CHECK(shape_.rank() > 0 && 0 <= begin && begin <= end && end <= shape_[0],
                  "slice [{}, {}) of {}", begin, end, shape_.str());
    std::array<std::int64_t, Shape::max_rank> extents{};
    for (int i = 0; i < shape_.rank(); ++i) extents[i] = shape_[i];
    const std::int64_t stride = shape_[0] == 0 ? 0 : elements() / shape_[0];
    extents[0] = end - begin;
    auto* base = static_cast<std::uint8_t*>(data_) + static_cast<std::size_t>(begin * stride) * size_of(dtype_);
    return Tensor(base, dtype_, Shape(std::span<const std::int64_t>(extents.data(), shape_.rank())), device_);
}

}  // namespace atelier
