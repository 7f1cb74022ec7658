#pragma once

#include <cstdint>

namespace atelier::ops {

/// Operands of products: fp32 as they are, or rounded to bf16 (sums and results are fp32 either way).
enum class ProductPrecision : std::uint8_t { fp32, bf16 };

namespace detail {
inline thread_local constinit ProductPrecision current_precision = ProductPrecision::fp32;
}
/// Of the calling thread's products on the CPU; a device's backend has its own (ops/backend.hpp).
inline ProductPrecision product_precision() { return detail::current_precision; }

/// The calling thread's products take operands of this precision for the scope's life. A processor that has bf16 products rounds in them
/// (ops/cpu/amx_matmul.hpp); for others, whoever makes an operand does, once (`round_operand`). Weights are rounded when they are loaded
/// and updated.
class PrecisionScope {
  public:
    explicit PrecisionScope(ProductPrecision precision) : before_(detail::current_precision) { detail::current_precision = precision; }
    ~PrecisionScope() { detail::current_precision = before_; }
    PrecisionScope(const PrecisionScope&) = delete;
    PrecisionScope& operator=(const PrecisionScope&) = delete;

  private:
    ProductPrecision before_;
};

namespace cpu {
/// Each of `rows` rows of `width` numbers, `stride` apart, becomes the nearest bf16 number (ties to even; NaN stays NaN), stored as fp32.
void round_to_bf16(std::int64_t rows, std::int64_t width, std::int64_t stride, float* x);
}  // namespace cpu

/// What a product will take: rounded in place where products of the calling thread run on the CPU in bf16 and don't round, else left as it is.
void round_operand(std::int64_t rows, std::int64_t width, std::int64_t stride, float* x);

}  // namespace atelier::ops
