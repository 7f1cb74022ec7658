#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "io/safetensors.hpp"
#include "nn/lora.hpp"
#include "nn/lora_listing.hpp"

namespace atelier::nn {

/// An adapter with its own memory.
class LoraAdapter {
  public:
    explicit LoraAdapter(LoraTable table, Device device = Device::cpu);
    LoraAdapter(const ParameterTable& model, const LoraConfig& config, Device device = Device::cpu);
    /// The same adapter on a device.
    LoraAdapter copy_to(Device device) const;
    const LoraStore& store() const { return *store_; }
    const LoraTable& table() const { return *table_; }
    Bytes bytes() const { return arena_.bytes(); }

  private:
    std::unique_ptr<LoraTable> table_;
    std::unique_ptr<LoraStore> store_;
    Arena arena_;
};

/// How an adapter's files are laid out:
enum class LoraLayout {
    diffusers,  ///< pytorch_lora_weights.safetensors, "transformer.<module>.lora_A.weight", configuration in its metadata
    peft,       ///< adapter_model.safetensors, "base_model.model.<module>.lora_A.weight", and adapter_config.json
};

/// Reads an adapter of a model, as list_lora() finds it. Throws Error(input) as that does, and for a module that the model doesn't have,
/// a shape that doesn't fit, numbers that are not finite.
LoraAdapter load_lora(const std::filesystem::path& path, const ParameterTable& model);

/// "FILE[:SCALE]" of an option --lora: an adapter and how much of it is added (1 unless said).
struct LoraRequest {
    std::filesystem::path path;
    float scale = 1;
};
/// Throws Error(usage) for another scale than a number, Error(input) where there is no such file or directory.
LoraRequest parse_lora_request(const std::string& text);

/// Tensors of a checkpoint with adapters, times their scales, added to them, made as they are written, each in the dtype of its row. All must outlive
/// them.
std::vector<io::TensorToWrite> merged_tensors(const ParameterTable& model, const io::Safetensors& stored,
                                              const std::vector<std::pair<LoraAdapter, float>>& adapters, const std::vector<DType>& dtypes);

/// Writes the adapter's files into a directory, fp32. Returns their names. Not atomic.
std::vector<std::string> save_lora(const LoraStore& adapter, const std::filesystem::path& directory, LoraLayout layout);

}  // namespace atelier::nn
