#pragma once

#include "ops/attention.hpp"
#include "ops/cuda/dense_attention.hpp"

// What dense attention does itself around the library's calls.
namespace atelier::ops::cuda {

/// k and v [batch, shared + own keys, kv_heads * head_dim]: the shared keys once for each entry, its own behind them.
void pack_keys(const AttentionShape& shape, AttentionKeys shared, AttentionKeys own, std::uint16_t* k, std::uint16_t* v);

/// The gradients dk and dv [batch, keys, kv_heads * head_dim] of a call over the first `keys` of [shared, own]: those of the shared keys are added,
/// batch entries in order (null: left out), those of own ones added, or written.
void unpack_key_gradients(const AttentionShape& shape, std::int64_t keys, bool adds, const std::uint16_t* dk, const std::uint16_t* dv,
                          AttentionKeyGradients shared, AttentionKeyGradients own);

/// dense_attention() and its gradient for one query with one key, which the library has no gradient for: the value itself, and the sum of what
/// comes back to it; none for query and key.
void single_key_attention(const DenseAttention& shape, const std::uint16_t* q, const std::uint16_t* k, const std::uint16_t* v, std::uint16_t* out,
                          float* stats);
void single_key_attention_backward(const DenseAttention& shape, const std::uint16_t* dout, std::uint16_t* dq, std::uint16_t* dk, std::uint16_t* dv);

}  // namespace atelier::ops::cuda
