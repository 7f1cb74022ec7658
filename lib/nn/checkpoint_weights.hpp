#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/numbers.hpp"
#include "io/safetensors.hpp"
#include "nn/device_rows.hpp"
#include "nn/parameters.hpp"

namespace atelier::nn {

/// Weights are stored as f32, bf16 or f16. Throws Error(input) for any other dtype.
void check_dtype(const io::Safetensors& file, const io::StoredTensor& stored);

/// Every row of the table must be there with its shape and in a floating dtype, and nothing else, except names in `ignorable`
/// (tensors that a variant of the class stores and no computation uses). Throws Error(input) naming the file, the
/// tensor, the expected and the found. Headers alone are read.
void check_weights(const ParameterTable& table, const io::Safetensors& file, std::span<const std::string> ignorable = {});

/// Fills the store from a checkpoint, converting to fp32, after check_weights(). NaN and infinity are an Error(input) too. Pages
/// of the file leave this process's memory as they are read.
void load_weights(const ParameterStore& store, const io::Safetensors& file,
                  std::span<const std::string> ignorable = {});
/// The same, for the rows that are held, as they are.
void load_weights(const DeviceRows& rows, const io::Safetensors& file, std::span<const std::string> ignorable = {});

/// Numbers of a checkpoint on their way to where they are used; NaN and infinity are Error(input). To a device they go in the narrower of the
/// file's width and their own there, through pinned memory.
class NumbersLoader {
  public:
    /// Takes a buffer of the device's memory for what is stored as bf16.
    NumbersLoader(const io::Safetensors& file, Device device);
    /// Elements [first, first + to.elements()) of a tensor, to fp32, or rounded to bf16 here.
    void load(const io::StoredTensor& stored, std::int64_t first, const Tensor& to) const;

  private:
    static constexpr std::int64_t room_numbers = 1 << 22;  ///< rounded for a device at a time
    /// Of numbers that lie on a device, fp32 or bf16.
    void check_finite_there(const io::StoredTensor& stored, std::int64_t first, const Tensor& to) const;
    void to_device(const io::StoredTensor& stored, std::int64_t first, const Tensor& to) const;
    void load_rounded(const io::StoredTensor& stored, std::int64_t first, const Tensor& to) const;
    const io::Safetensors& file_;
    Numbers room_;
};

/// How a model's weights are stored.
struct StorageFormat {
    std::vector<DType> dtypes;        ///< of each row of the table: f32, bf16 or f16
    std::uint64_t shard_bytes = 0;    ///< files are cut at this size
    std::map<std::string, std::string> metadata;  ///< of every file
    /// What is stored is what is in memory.
    bool is_exact() const;
};

/// `dtype` for every row, or, where there is none, the dtype that `source` stores it in; metadata as in `source`.
StorageFormat storage_format(const ParameterTable& table, const io::Safetensors& source, std::optional<DType> dtype,
                             std::uint64_t shard_bytes);
/// "f32", "bf16", "f16"; nothing for "kept". Throws Error(usage).
std::optional<DType> parse_storage_dtype(const std::string& word);

/// Rounds numbers to what is stored, so that the model that runs is the one that is on disk.
void round_to(DType dtype, std::span<float> values);

/// Writes the store under its table's names into a directory (io::write_sharded). Returns the names of the files. Not atomic. Where
/// blocks of the store are gathered when they are used, every other rank calls attend_saving() meanwhile.
std::vector<std::string> save_weights(const ParameterStore& store, const std::filesystem::path& directory,
                                      const std::string& stem, const StorageFormat& format);

void attend_saving(const ParameterStore& store);

}  // namespace atelier::nn
