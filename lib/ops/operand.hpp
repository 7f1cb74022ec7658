#pragma once

#include <cstdint>

#include "core/tensor.hpp"

namespace atelier::ops {

/// Numbers that products and attention take, where others read them: fp32, or, on a device whose products round, bf16 alone: what the
/// product would have rounded them to. Offsets and strides are in numbers either way.
class Operand {
  public:
    Operand() = default;
    Operand(const float* numbers) : data_(const_cast<float*>(numbers)) {}  // an fp32 buffer is one as it is
    Operand(const std::uint16_t* bits) : data_(const_cast<std::uint16_t*>(bits)), is_bf16_(true) {}
    /// f32 or bf16.
    Operand(const Tensor& tensor) : data_(tensor.raw()), is_bf16_(tensor.dtype() == DType::bf16) {
        ATELIER_CHECK(is_bf16_ || tensor.dtype() == DType::f32, "an operand of {}", name_of(tensor.dtype()));
    }
    bool is_bf16() const { return is_bf16_; }
    /// Throws Error(internal) where they are bf16 alone.
    const float* f32() const { return numbers(); }
    /// Throws Error(internal) where they are fp32.
    const std::uint16_t* bf16() const { return bits(); }
    Operand from(std::int64_t first) const { return is_bf16_ ? Operand(bits() + first) : Operand(numbers() + first); }

  protected:
    float* numbers() const {
        ATELIER_CHECK(!is_bf16_, "an operand that is there in bf16 alone was read as fp32");
        return static_cast<float*>(data_);
    }
    std::uint16_t* bits() const {
        ATELIER_CHECK(is_bf16_, "an operand of fp32 was read as bf16");
        return static_cast<std::uint16_t*>(data_);
    }

  private:
    void* data_ = nullptr;
    bool is_bf16_ = false;
};

/// The same, to be written: numbers are rounded (nearest even) where they are bf16.
class OperandOut : public Operand {
  public:
    OperandOut(float* numbers) : Operand(numbers) {}
    OperandOut(std::uint16_t* bits) : Operand(bits) {}
    OperandOut(const Tensor& tensor) : Operand(tensor) {}
    float* f32() const { return numbers(); }
    std::uint16_t* bf16() const { return bits(); }
    OperandOut from(std::int64_t first) const { return is_bf16() ? OperandOut(bits() + first) : OperandOut(numbers() + first); }
};

}  // namespace atelier::ops
