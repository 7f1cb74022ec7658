#pragma once

#include "ops/attention.hpp"

namespace atelier::ops::cuda {

/// fp32 attention of heads wider than plain_attention takes (the autoencoder's one head of all channels): scores of a block of queries
/// by a product, their softmax, a product with the values. Own keys alone, no masks, no gradient. head_dim, strides and the number of
/// keys are multiples of four. Throws Error(internal) for anything else.
/// `workspace` of wide_attention_workspace() numbers (workspaces.hpp).
void wide_attention(const AttentionShape& shape, const float* q, AttentionKeys own, float* out, const float* log_sum_exp, float* workspace);

}  // namespace atelier::ops::cuda
