#pragma once

#include <functional>
#include <vector>

#include "core/arena.hpp"
#include "nn/parameters.hpp"
#include "ops/precision.hpp"

namespace atelier::nn {

/// Whether a device keeps bf16 of what products take.
inline bool keeps_bf16(Device device, ops::ProductPrecision precision) { return device != Device::cpu && precision == ops::ProductPrecision::bf16; }

/// Rows in a device's memory as its computation reads them: fp32; where products round, bf16 of their operands (ParameterTable::is_operand), and both of
/// what is read both ways.
class DeviceRows {
  public:
    /// Of the rows that `holds` says. Takes its memory from the arena.
    DeviceRows(const ParameterTable& table, const std::function<bool(int row)>& holds, Arena& arena, Device device, bool rounds);
    const ParameterTable& table() const { return *table_; }
    Device device() const { return fp32_.device(); }
    /// As products take it; empty: the row isn't held.
    Tensor as_read(int row) const;
    /// In fp32. Throws Error(internal) where that isn't held.
    Tensor numbers(int row) const;
    /// Empty where the row is not held so.
    Tensor bf16(int row) const { return view(bf16_, bf16_at_, row); }
    Tensor fp32(int row) const { return view(fp32_, fp32_at_, row); }
    /// Rounds the rows that are held both ways, from fp32.
    void round_both() const;

  private:
    Tensor view(const Tensor& memory, const std::vector<std::int64_t>& at, int row) const;
    const ParameterTable* table_;
    std::vector<std::int64_t> bf16_at_, fp32_at_;  ///< of each row; -1: not there
    Tensor bf16_, fp32_;
};

/// Rounds fp32 numbers of a device's memory to bf16 of as many.
void round_there(const float* from, std::uint16_t* to, std::int64_t count);

}  // namespace atelier::nn
