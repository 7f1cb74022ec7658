#include "ops/precision.hpp"

#include <bit>

#include "core/device.hpp"
#include "core/parallel.hpp"
#include "ops/cpu/bf16_matmul.hpp"

namespace atelier::ops {

namespace cpu {

// As f32_to_bf16 (core/convert.hpp), without branches.
void round_to_bf16(std::int64_t rows, std::int64_t width, std::int64_t stride, float* x) {
    parallel_for(rows, 16, [=](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            float* row = x + i * stride;
            for (std::int64_t j = 0; j < width; ++j) {
                const auto bits = std::bit_cast<std::uint32_t>(row[j]);
                const bool nan = (bits & 0x7fffffffU) > 0x7f800000U;
                const std::uint32_t rounded = nan ? bits | 0x400000U : bits + 0x7fffU + ((bits >> 16) & 1U);
                row[j] = std::bit_cast<float>(rounded & 0xffff0000U);
            }
        }
    });
}

}  // namespace cpu

void round_operand(std::int64_t rows, std::int64_t width, std::int64_t stride, float* x) {
    if (product_precision() == ProductPrecision::bf16 && current_device() == Device::cpu && !cpu::has_bf16_products())
        cpu::round_to_bf16(rows, width, stride, x);
}

}  // namespace atelier::ops
