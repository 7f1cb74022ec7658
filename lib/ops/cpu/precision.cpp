#include "ops/precision.hpp"

#include "core/convert.hpp"
#include "core/device.hpp"
#include "core/parallel.hpp"
#include "ops/cpu/amx_block.hpp"

namespace atelier::ops {

namespace cpu {

void round_to_bf16(std::int64_t rows, std::int64_t width, std::int64_t stride, float* x) {
    parallel_for(rows, 16, [=](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            float* row = x + i * stride;
            for (std::int64_t j = 0; j < width; ++j) row[j] = bf16_to_f32(f32_to_bf16(row[j]));
        }
    });
}

}  // namespace cpu

void round_operand(std::int64_t rows, std::int64_t width, std::int64_t stride, float* x) {
    if (product_precision() == ProductPrecision::bf16 && current_device() == Device::cpu && !cpu::has_amx())
        cpu::round_to_bf16(rows, width, stride, x);
}

}  // namespace atelier::ops
