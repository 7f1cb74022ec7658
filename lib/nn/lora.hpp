#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "nn/parameters.hpp"

namespace atelier::nn {

/// W_effective = W + alpha / rank * B A, A [rank, in], B [out, rank] (Hu et al., arXiv 2106.09685), for the matrices whose module
/// names match a target.
struct LoraConfig {
    std::int64_t rank = 0;
    double alpha = 0;
    std::vector<std::string> targets;  ///< globs over module names: "*" any text, "?" one character; a name without either is a suffix
};

/// Of one matrix's adapter.
struct LoraSize {
    std::int64_t rank = 0;  ///< 0: none
    double alpha = 0;
    float scale() const { return static_cast<float>(alpha / static_cast<double>(rank)); }
    bool operator==(const LoraSize&) const = default;
};

/// "rank 4, alpha 8 for 42 matrices"; "rank 2 to 4" where they differ.
std::string describe(std::span<const LoraSize> sizes);

/// Which matrices of a model have an adapter, and where its numbers lie: an own table with two rows for each, "<module>.lora_A.weight"
/// and "<module>.lora_B.weight", in the model's order.
class LoraTable {
  public:
    /// The same rank and alpha for all targets. Throws Error(usage) for a rank or alpha that is not positive, a target that matches no
    /// matrix, a rank above a matrix's own.
    LoraTable(const ParameterTable& model, const LoraConfig& config);
    /// Of each row of the model's table: positive for matrices alone.
    LoraTable(const ParameterTable& model, std::vector<LoraSize> sizes);
    const ParameterTable& table() const { return table_; }
    const ParameterTable& model() const { return *model_; }
    /// The largest.
    std::int64_t rank() const { return rank_; }
    /// Of a row of the model's table that is adapted.
    float scale(int row) const { return sizes_[static_cast<std::size_t>(row)].scale(); }
    /// Of each row of the model's table.
    const std::vector<LoraSize>& sizes() const { return sizes_; }
    /// Row of A in table() for a row of the model's table; that of B follows it. -1: not adapted.
    int find(int row) const { return rows_[static_cast<std::size_t>(row)]; }
    /// Rows of the model's table that are adapted, in order.
    std::vector<int> adapted() const;
    /// As describe() of the sizes.
    std::string text() const;

  private:
    const ParameterTable* model_;
    std::vector<LoraSize> sizes_;
    std::int64_t rank_ = 0;
    ParameterTable table_;
    std::vector<int> rows_;
};

/// An adapter's numbers, or their gradients, laid out by its table.
class LoraStore {
  public:
    /// Takes its numbers and a workspace from the arena, of the device's memory if so. The table must outlive the store.
    LoraStore(const LoraTable& table, Arena& arena, Device device = Device::cpu);
    const LoraTable& table() const { return *table_; }
    const ParameterStore& values() const { return values_; }
    bool adapts(int row) const { return table_->find(row) >= 0; }
    Tensor a(int row) const { return values_[table_->find(row)]; }
    Tensor b(int row) const { return values_[table_->find(row) + 1]; }

    /// Rows of an input that go through the adapter at a time. On a CPU a piece's inner numbers stay in a core's cache; on a device a piece is a few
    /// launches of products too small to fill it, so that a micro-batch is one piece (16,384 rows of rank 32 are 2 MiB, twice).
    static constexpr std::int64_t chunk(Device device) { return device == Device::cpu ? 1024 : 16384; }
    std::int64_t chunk() const { return chunk(down_.device()); }
    /// [rows, rank of the row's matrix], up to chunk() rows, twice. Used by one product at a time.
    Tensor down(int row, std::int64_t rows) const { return inner(down_, row, rows); }
    Tensor up(int row, std::int64_t rows) const { return inner(up_, row, rows); }
    /// Where gradients of frozen vectors go that an operation insists on writing.
    float* discard() const { return discard_.f32(); }

  private:
    Tensor inner(const Tensor& room, int row, std::int64_t rows) const;
    const LoraTable* table_ = nullptr;
    ParameterStore values_;
    Tensor down_, up_;  ///< [chunk() * largest rank]
    Tensor discard_;
};

/// A normal with standard deviation 1 / sqrt(in), B zero: the adapter changes nothing at first. Keyed by seed.
void initialise(const LoraStore& adapter, std::uint64_t seed);

/// Adds factor * scale * B A to each adapted matrix, in fp32 on the CPU wherever the weights are. The adapter is in host memory.
void merge_lora(const LoraStore& adapter, const ParameterStore& weights, float factor = 1.0f);
/// The same for one matrix [out, in] at `w`, of a row of the model's table.
void merge_lora(const LoraStore& adapter, int row, float factor, float* w);

}  // namespace atelier::nn
