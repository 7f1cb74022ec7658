#pragma once

#include <filesystem>
#include <span>
#include <string>

#include "io/safetensors.hpp"
#include "nn/parameters.hpp"

namespace atelier::nn {

/// Fills the store from a checkpoint, converting to fp32.
///
/// Every row of the table must be there with its shape, and nothing else, except names in `ignorable`
/// (tensors that a variant of the class stores and no computation uses). Throws Error(input) naming the file, the
/// tensor, the expected and the found; NaN and infinity are refused too. Nothing is written before the
/// names and shapes have been checked.
void load_weights(const ParameterStore& store, const io::Safetensors& file,
                  std::span<const std::string> ignorable = {});

/// Writes the store under its table's names. `dtype`: f32, bf16 or f16. Not atomic (see io::write_safetensors).
void save_weights(const ParameterStore& store, const std::filesystem::path& path, DType dtype);

}  // namespace atelier::nn
