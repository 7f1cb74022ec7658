#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "nn/parameters.hpp"

namespace atelier::nn {

/// One adapted matrix: W_effective = W + scale * B A, A [rank, in], B [out, rank] (Hu et al., 2106.09685).
struct LoraMatrix {
    int parameter = 0;  ///< row of the model's table
    std::int64_t rank = 0;
    float scale = 1;    ///< alpha / rank
    std::vector<float> a, b;
};

/// A PEFT adapter as diffusers writes it: `<module>.lora_A.weight`, `<module>.lora_B.weight`, and the adapter's
/// configuration as JSON in the file's metadata (`lora_adapter_metadata`).
struct LoraAdapter {
    std::vector<LoraMatrix> matrices;
};

/// Throws Error(input) naming file and tensor for a module that the model doesn't have, a shape that doesn't fit, half a
/// pair, a missing alpha, or a variant that changes the result (DoRA, rsLoRA, patterns, biases).
LoraAdapter load_lora(const std::filesystem::path& file, const ParameterTable& table);

/// Adds factor * scale * B A to each adapted matrix (factor -1 takes the adapter out again, up to rounding).
void merge_lora(const LoraAdapter& adapter, const ParameterStore& weights, float factor = 1.0f);

/// Gradients of A and B from the gradient of the effective matrix: dA = s B^T dW, dB = s dW A^T.
LoraMatrix lora_gradients(const LoraMatrix& matrix, const Tensor& d_weight);

}  // namespace atelier::nn
