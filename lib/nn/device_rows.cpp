#include "nn/device_rows.hpp"

#include "ops/backend.hpp"

namespace atelier::nn {

DeviceRows::DeviceRows(const ParameterTable& table, const std::function<bool(int row)>& holds, Arena& arena, Device device, bool rounds)
    : table_(&table) {
    std::int64_t rounded = 0, exact = 0;
    // One behind the other, so that matrices that follow one another in the table do so here.
    const auto place = [](std::int64_t& end, std::int64_t count) {
        const std::int64_t at = end;
        end += (count + ParameterTable::alignment - 1) / ParameterTable::alignment * ParameterTable::alignment;
        return at;
    };
    for (int row = 0; row < table.size(); ++row) {
        const bool held = holds(row), is_operand = held && rounds && table.is_operand(row);
        const std::int64_t count = table.spec(row).shape.elements();
        bf16_at_.push_back(is_operand ? place(rounded, count) : -1);
        fp32_at_.push_back(held && !(is_operand && table.spec(row).reader == Reader::products) ? place(exact, count) : -1);
    }
    bf16_ = arena.take(DType::bf16, {rounded}, device);
    fp32_ = arena.take_f32({exact}, device);
}

Tensor DeviceRows::view(const Tensor& memory, const std::vector<std::int64_t>& places, int row) const {
    const std::int64_t at = places[static_cast<std::size_t>(row)];
    if (at < 0) return {};
    const Shape& shape = table_->spec(row).shape;
    return memory.slice(at, at + shape.elements()).reshaped(shape);
}

Tensor DeviceRows::as_read(int row) const {
    const Tensor rounded = bf16(row);
    return rounded.empty() ? fp32(row) : rounded;
}

Tensor DeviceRows::numbers(int row) const {
    const Tensor held = fp32(row);
    ATELIER_CHECK(!held.empty(), "{} is wanted in fp32, products alone read it", table_->spec(row).name);
    return held;
}

void DeviceRows::round_both() const {
    for (int row = 0; row < table_->size(); ++row)
        if (const Tensor to = bf16(row), from = fp32(row); !to.empty() && !from.empty())
            round_there(from.f32(), static_cast<std::uint16_t*>(to.raw()), from.elements());
}

void round_there(const float* from, std::uint16_t* to, std::int64_t count) {
    if (count > 0) ops::backend().copy_columns(1, count, from, count, to, count);
}

}  // namespace atelier::nn
