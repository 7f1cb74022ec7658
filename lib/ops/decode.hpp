#pragma once

#include <cstdint>
#include <span>

#include "core/tensor.hpp"
#include "ops/dispatch.hpp"

// What decoding many sequences at once takes, a token each. A row's result has the same bits in any company: it depends on the
// row alone, never on how many others there are or on its place among them.
namespace atelier::ops {

/// Keys and values of consecutive tokens: [length, kv_heads * head_dim] each, where the operation runs. Lists of them are host memory.
struct CachedTokens {
    const float* k = nullptr;
    const float* v = nullptr;
    std::int64_t length = 0;
};
struct DecodeAttentionShape {
    std::int64_t heads = 0, kv_heads = 0, head_dim = 0;
    std::int64_t most_keys = 0;  ///< of any row
    float scale = 0;             ///< of the scores
};

namespace cpu {

/// y = x W^T: x [rows, K], weight [N, K], y [rows, N]; for few rows.
void linear_rows(const Tensor& x, const Tensor& weight, const Tensor& y);
/// Row i of in [rows, width] to to[i].
void append_rows(const Tensor& in, std::span<float* const> to);
/// Softmax attention of one query a row over its own tokens: first[row], then second[row]. q, out [rows, heads * head_dim];
/// scores [rows, heads, most_keys] is workspace. Query head h uses key head h / (heads / kv_heads).
void decode_attention(const DecodeAttentionShape& shape, const Tensor& q, std::span<const CachedTokens> first,
                      std::span<const CachedTokens> second, const Tensor& out, const Tensor& scores);

}  // namespace cpu

ATELIER_OP(linear_rows);
ATELIER_OP(append_rows);
ATELIER_OP(decode_attention);

}  // namespace atelier::ops
