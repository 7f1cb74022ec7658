#pragma once

#include <cstdint>

#include "core/tensor.hpp"
#include "ops/dispatch.hpp"
#include "ops/operand.hpp"

namespace atelier::ops {

/// Softmax attention of a batch over [shared keys, own keys], in one pass.
///
/// Shared keys are one set for the whole batch (the prefix of a prompt); own keys belong to one batch
/// entry. Either part may be empty (length 0). Masks are by key limit: query i of each entry sees own
/// key j iff j < own_limit[i] (no limits: all), and any key only if its validity byte is not 0 (no bytes:
/// all valid). That covers full, causal (limit i + 1) and block-causal (limit = end of i's block) attention
/// and padding. A query that sees no key at all gives zeros.
///
/// Strides are in numbers between consecutive tokens, so q, k and v may lie in one packed buffer;
/// heads are contiguous within a token: element (token, head, channel) at token * stride + head * head_dim +
/// channel. Query head h uses key head h / (heads / kv_heads) (grouped-query attention). The masks are host memory wherever
/// the operation runs.
struct AttentionShape {
    std::int64_t batch = 1;
    std::int64_t queries = 0;         ///< per batch entry
    std::int64_t shared_keys = 0;
    std::int64_t own_keys = 0;        ///< per batch entry
    std::int64_t heads = 0, kv_heads = 0, head_dim = 0;
    std::int64_t q_stride = 0, shared_stride = 0, own_stride = 0, out_stride = 0;
    float scale = 0;                  ///< of the scores; 1 / sqrt(head_dim) as a rule
    const std::int32_t* own_limit = nullptr;      ///< [queries]
    const std::uint8_t* shared_valid = nullptr;   ///< [shared_keys]
    const std::uint8_t* own_valid = nullptr;      ///< [batch, own_keys]
};

struct AttentionKeys {
    Operand k, v;
};

struct AttentionKeyGradients {
    float* dk = nullptr;
    float* dv = nullptr;
};

namespace cpu {

/// Floats of workspace that `attention` and `attention_backward` need, for `threads()` threads; the latter is never less.
std::int64_t attention_workspace(const AttentionShape& shape);
std::int64_t attention_backward_workspace(const AttentionShape& shape);

/// Where products take bf16 (ops/precision.hpp) probabilities, and gradients of scores, are rounded here, after the softmax and its
/// backward in fp32; q, k, v and dout by the caller.
///
/// out [batch, queries, heads * head_dim] by out_stride; log_sum_exp [batch, heads, queries] for the
/// backward pass (nullptr: not kept; the same bits of `out` either way).
void attention(const AttentionShape& shape, Operand q, AttentionKeys shared, AttentionKeys own, OperandOut out,
               float* log_sum_exp, const Tensor& workspace);

/// Gradients: dq and own dk, dv are written (not added), the strides of q and own keys; shared dk, dv are
/// ADDED to (strides of the shared keys), entries of the batch in index order. `out` and `dout` by out_stride.
/// shared_gradients may be null (frozen prefix).
void attention_backward(const AttentionShape& shape, Operand q, AttentionKeys shared, AttentionKeys own,
                        Operand out, const float* log_sum_exp, Operand dout, float* dq,
                        AttentionKeyGradients shared_gradients, AttentionKeyGradients own_gradients,
                        const Tensor& workspace);

}  // namespace cpu

ATELIER_OP(attention_workspace);
ATELIER_OP(attention_backward_workspace);
ATELIER_OP(attention);
ATELIER_OP(attention_backward);

}  // namespace atelier::ops
