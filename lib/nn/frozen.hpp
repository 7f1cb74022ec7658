#pragma once

#include <optional>
#include <span>
#include <string>

#include "io/safetensors.hpp"
#include "nn/device_rows.hpp"

namespace atelier::nn {

/// Weights that nobody trains, all there all the time: on a device as its computation reads them (DeviceRows), on the CPU a flat vector.
class FrozenWeights final : public Residence {
  public:
    /// Takes its memory from the arena. `precision`: of the device's products.
    FrozenWeights(const ParameterTable& table, Arena& arena, Device device, ops::ProductPrecision precision);
    FrozenWeights(const FrozenWeights&) = delete;
    FrozenWeights& operator=(const FrozenWeights&) = delete;
    /// A view of them, as long as they are here.
    ParameterStore store() { return rows_ ? ParameterStore(rows_->table(), *this) : flat_; }
    /// As load_weights().
    void load(const io::Safetensors& file, std::span<const std::string> ignorable = {}) const;
    /// Writes numbers [first, first + count) of a row, from fp32 in host memory, which is written over where they are rounded.
    void put(int row, std::int64_t first, const Tensor& numbers) const;

    Device device() const override { return rows_ ? rows_->device() : Device::cpu; }
    Tensor row(int index) override { return rows_->as_read(index); }
    Tensor numbers(int index) override { return rows_->numbers(index); }
    void acquire(int) override {}
    void release(int) override {}
    bool is_fixed() const override { return true; }

  private:
    std::optional<DeviceRows> rows_;
    ParameterStore flat_;
};

/// Bytes that they take.
Bytes frozen_bytes(const ParameterTable& table, Device device, ops::ProductPrecision precision);

}  // namespace atelier::nn
