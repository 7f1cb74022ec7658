#include "nn/frozen.hpp"

#include <cstring>

#include "core/convert.hpp"
#include "core/device.hpp"
#include "nn/checkpoint_weights.hpp"

namespace atelier::nn {
namespace {

/// The same memory, rounded to bf16 from its head on.
Tensor round_in_place(const Tensor& numbers) {
    auto* bytes = static_cast<unsigned char*>(numbers.raw());
    for (std::int64_t i = 0; i < numbers.elements(); ++i) {
        float value = 0;
        std::memcpy(&value, bytes + 4 * i, 4);
        const std::uint16_t bits = f32_to_bf16(value);
        std::memcpy(bytes + 2 * i, &bits, 2);
    }
    return {bytes, DType::bf16, numbers.shape()};
}

}  // namespace

FrozenWeights::FrozenWeights(const ParameterTable& table, Arena& arena, Device device, ops::ProductPrecision precision) {
    if (device == Device::cpu)
        flat_ = ParameterStore(table, arena);
    else
        rows_.emplace(table, [](int) { return true; }, arena, device, keeps_bf16(device, precision));
}

void FrozenWeights::load(const io::Safetensors& file, std::span<const std::string> ignorable) const {
    if (rows_)
        load_weights(*rows_, file, ignorable);
    else
        load_weights(flat_, file, ignorable);
}

void FrozenWeights::put(int row, std::int64_t first, const Tensor& numbers) const {
    const auto write = [&](const Tensor& from, const Tensor& held) {
        transfer(from, held.reshaped({held.elements()}).slice(first, first + from.elements()));
    };
    if (!rows_) return write(numbers, flat_[row]);
    if (const Tensor held = rows_->fp32(row); !held.empty()) write(numbers, held);
    if (const Tensor held = rows_->bf16(row); !held.empty()) write(round_in_place(numbers), held);
}

Bytes frozen_bytes(const ParameterTable& table, Device device, ops::ProductPrecision precision) {
    return Workspace::measure([&](Arena& arena) { FrozenWeights(table, arena, device, precision); });
}

}  // namespace atelier::nn
