#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace atelier::ops::cuda {

/// Unmasked (or causal, aligned at the last query and key) bf16 attention as the library sees it. Strides are numbers from one token to the
/// next; a batch entry has `entry_queries` and `entry_keys` tokens in memory, of which `queries` and `keys` take part.
struct DenseAttention {
    std::int64_t batch = 0, queries = 0, keys = 0, heads = 0, kv_heads = 0, head_dim = 0;
    std::int64_t entry_queries = 0, entry_keys = 0, q_stride = 0, kv_stride = 0, out_stride = 0;
    std::int64_t q_gradient_stride = 0, kv_gradient_stride = 0;  ///< of dq and dout, of dk and dv (a batch entry of these has `keys` tokens)
    bool causal = false;
    float scale = 0;
    auto operator<=>(const DenseAttention&) const = default;
};

/// stats [batch, heads, queries]: log-sum-exp of the scores. cuDNN; one plan a shape, made once and kept.
void dense_attention(const DenseAttention& shape, const std::uint16_t* q, const std::uint16_t* k, const std::uint16_t* v, std::uint16_t* out,
                     float* stats);
/// By cuDNN's deterministic algorithm, which works in `room` (device memory) where that is enough, else in scratch memory of its own.
void dense_attention_backward(const DenseAttention& shape, const std::uint16_t* q, const std::uint16_t* k, const std::uint16_t* v,
                              const std::uint16_t* out, const float* stats, const std::uint16_t* dout, std::uint16_t* dq, std::uint16_t* dk,
                              std::uint16_t* dv, std::span<std::byte> room);

}  // namespace atelier::ops::cuda
