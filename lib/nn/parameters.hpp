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

/// One row of a model's table: everything that is true of a parameter.
struct ParameterSpec {
    std::string name;    ///< as in the checkpoint (diffusers / transformers names)
    Shape shape;
    bool decay = true;   ///< weight decay applies
    Init init = Init::fan_in_normal;
    int shard_axis = 0;  ///< axis cut by sharded training
    bool used = true;    ///< false: read, kept and written back, but no computation touches it
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
    /// Numbers in the flat vector, padding included.
    std::int64_t flat_size() const { return flat_size_; }
    /// Parameters proper, padding not included.
    std::int64_t count() const;

  private:
    std::vector<ParameterSpec> specs_;
    std::vector<std::int64_t> offsets_;
    std::unordered_map<std::string, int> index_;
    std::int64_t flat_size_ = 0;
};

/// A flat fp32 vector laid out by a table: weights, or gradients, or an optimizer moment.
class ParameterStore {
  public:
    ParameterStore() = default;
    /// Takes table.flat_size() numbers from the arena, of the device's memory if so. The table must outlive the store.
    ParameterStore(const ParameterTable& table, Arena& arena, Device device = Device::cpu);
    Tensor operator[](int index) const;
    Tensor at(const std::string& name) const;
    float* data() const { return flat_.f32(); }
    Tensor flat() const { return flat_; }
    const ParameterTable& table() const { return *table_; }

  private:
    const ParameterTable* table_ = nullptr;
    Tensor flat_;
};

/// Philox-keyed values by each row's Init (norm weights 1, biases 0, matrices normal / sqrt(fan in)).
void initialise(const ParameterStore& store, std::uint64_t seed);

}  // namespace atelier::nn
