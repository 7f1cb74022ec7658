#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/arena.hpp"
#include "core/tensor.hpp"

namespace atelier::nn {

/// How a parameter starts in a randomly initialised model (tests and plans; training starts from files).
enum class Init : std::uint8_t { fan_in_normal, ones, zeros };

/// What reads a parameter.
enum class Reader : std::uint8_t {
    operations,  ///< in fp32
    products,    ///< as their operand, and nothing else does
    both,
};

/// One row of a model's table: everything that is true of a parameter.
struct ParameterSpec {
    std::string name;    ///< as in the checkpoint (diffusers / transformers names)
    Shape shape;
    bool decay = true;   ///< weight decay applies
    Init init = Init::fan_in_normal;
    int block = -1;      ///< sharded training gathers blocks one by one when they are used; -1: is there all the time
    bool used = true;    ///< false: read, kept and written back, but no computation touches it
    Reader reader = Reader::operations;
};

/// The declarative table of a model: names, shapes and offsets in one flat fp32 vector. Every
/// parameter starts at a multiple of 16 numbers (64 bytes).
class ParameterTable {
  public:
    static constexpr std::int64_t alignment = 16;
    /// Returns the row's index.
    int add(ParameterSpec spec);
    int find(const std::string& name) const;  ///< -1 if absent
    const std::vector<ParameterSpec>& specs() const { return specs_; }
    const ParameterSpec& spec(int index) const { return specs_[static_cast<std::size_t>(index)]; }
    std::int64_t offset(int index) const { return offsets_[static_cast<std::size_t>(index)]; }
    int size() const { return static_cast<int>(specs_.size()); }
    /// Whether bf16 of a row is what products take as it is where they round: rows of the matrix begin at multiples of 16 bytes then.
    bool is_operand(int index) const;
    /// Numbers in the flat vector, padding included.
    std::int64_t flat_size() const { return flat_size_; }
    /// Parameters proper, padding not included.
    std::int64_t count() const;
    /// How many blocks there are; each is a run of rows.
    int blocks() const { return blocks_; }

  private:
    int blocks_ = 0;
    std::vector<ParameterSpec> specs_;
    std::vector<std::int64_t> offsets_;
    std::unordered_map<std::string, int> index_;
    std::int64_t flat_size_ = 0;
};

class LoraStore;

/// The numbers of a store that is no flat vector: not all blocks are in memory all the time (sharded training, where calls are collective: every
/// rank makes the same ones in the same order), or rows are in bf16.
class Residence {
  public:
    virtual ~Residence() = default;
    /// Where rows are.
    virtual Device device() const = 0;
    /// A row as products take it: in bf16 where that is kept (nn/device_rows.hpp), else in fp32. Throws Error(internal) for a block that
    /// isn't acquired.
    virtual Tensor row(int index) = 0;
    /// A row in fp32. Throws Error(internal) too where there is none.
    virtual Tensor numbers(int index) { return row(index); }
    virtual void acquire(int block) = 0;
    virtual void release(int block) = 0;
    /// Whether rows stay where they are.
    virtual bool is_fixed() const { return false; }
};

/// A flat fp32 vector laid out by a table: weights, or gradients, or an optimizer moment. A view: copies show the same numbers.
///
/// With an adapter (nn/lora.hpp) weights are those of the base and the adapter's beside them, and gradients are the adapter's
/// alone: such a store holds no numbers of the table's own rows.
class ParameterStore {
  public:
    ParameterStore() = default;
    /// Takes table.flat_size() numbers from the arena, of the device's memory if so. The table must outlive the store.
    ParameterStore(const ParameterTable& table, Arena& arena, Device device = Device::cpu);
    /// Over numbers [flat_size] that somebody else holds.
    ParameterStore(const ParameterTable& table, const Tensor& values) : table_(&table), flat_(values) {}
    /// Rows that are where the residence says.
    ParameterStore(const ParameterTable& table, Residence& residence) : table_(&table), residence_(&residence) {}
    /// Gradients of an adapter alone.
    ParameterStore(const ParameterTable& table, const LoraStore& adapter) : table_(&table), lora_(&adapter) {}
    Tensor operator[](int index) const;
    /// In fp32, of a row that is no product's operand alone.
    Tensor numbers(int index) const { return residence_ != nullptr ? residence_->numbers(index) : (*this)[index]; }
    Tensor at(const std::string& name) const;
    float* data() const { return flat_.f32(); }
    Tensor flat() const { return flat_; }
    const ParameterTable& table() const { return *table_; }
    /// Whether rows of the table have numbers here; else only the adapter has.
    bool has_values() const { return !flat_.empty() || residence_ != nullptr; }
    /// Where its numbers are.
    Device device() const { return residence_ != nullptr ? residence_->device() : flat_.device(); }
    /// Null: everything is in memory, in fp32.
    Residence* residence() const { return residence_; }
    /// Whether its numbers stay where they are; then `place` says which they are.
    bool is_fixed() const { return residence_ == nullptr || residence_->is_fixed(); }
    const void* place() const { return residence_ != nullptr ? static_cast<const void*>(residence_) : flat_.raw(); }
    /// Around every use of a block's rows.
    void acquire(std::int64_t block) const {
        if (residence_ != nullptr) residence_->acquire(static_cast<int>(block));
    }
    void release(std::int64_t block) const {
        if (residence_ != nullptr) residence_->release(static_cast<int>(block));
    }

    const LoraStore* lora() const { return lora_; }
    /// The same numbers with an adapter beside them, or without one.
    ParameterStore with_lora(const LoraStore* adapter) const;

  private:
    const ParameterTable* table_ = nullptr;
    Tensor flat_;
    Residence* residence_ = nullptr;
    const LoraStore* lora_ = nullptr;
};

/// Bytes of the rounded copy of a table's weights that products take on a device (ops/backend.hpp).
Bytes rounded_copy_bytes(const ParameterTable& table, Device device);

/// Philox-keyed values by each row's Init (norm weights 1, biases 0, matrices normal / sqrt(fan in)).
void initialise(const ParameterStore& store, std::uint64_t seed);

}  // namespace atelier::nn
