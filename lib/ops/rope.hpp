#pragma once

#include <cstdint>

#include "ops/dispatch.hpp"
#include "ops/operand.hpp"

namespace atelier::ops {

/// RMS norm of each head of q and k, then rotation of neighbouring channel pairs (2i, 2i + 1); v is copied.
/// Rows hold [q | k | v], each heads * head_dim numbers. Row r rotates by row r % positions of cosine and sine
/// ([positions, head_dim / 2]).
struct QkNormRopeShape {
    std::int64_t rows = 0, heads = 0, head_dim = 0, positions = 0;
    float eps = 1e-6f;
};

namespace cpu {

/// in and out [rows, 3 * heads * head_dim]; weights [head_dim]; inverse_rms [rows, 2, heads] kept for the backward pass.
void qk_norm_rope(const QkNormRopeShape& shape, Operand in, const float* q_weight, const float* k_weight,
                  const float* cosine, const float* sine, OperandOut out, float* inverse_rms);

/// Numbers of workspace for the partial sums of the weight gradients.
std::int64_t qk_norm_rope_workspace(const QkNormRopeShape& shape);

/// d_out and d_in [rows, 3 * heads * head_dim], which may be one memory; d_out is void afterwards. dq_weight and dk_weight are
/// added to (null: skipped).
void qk_norm_rope_backward(const QkNormRopeShape& shape, Operand in, const float* q_weight,
                           const float* k_weight, const float* cosine, const float* sine, const float* inverse_rms,
                           float* d_out, OperandOut d_in, float* dq_weight, float* dk_weight, float* workspace);

/// Rotation of channel pairs (i, i + head_dim / 2) in place, as in Qwen3-VL: cosine and sine [rows, head_dim / 2].
void rope_half(std::int64_t rows, std::int64_t heads, std::int64_t head_dim, std::int64_t stride, const float* cosine,
               const float* sine, float* x);
/// `gradient` of the result on entry, of x on return; same layout.
void rope_half_backward(std::int64_t rows, std::int64_t heads, std::int64_t head_dim, std::int64_t stride,
                        const float* cosine, const float* sine, float* gradient);

}  // namespace cpu

ATELIER_OP(qk_norm_rope);
ATELIER_OP(qk_norm_rope_workspace);
ATELIER_OP(qk_norm_rope_backward);
ATELIER_OP(rope_half);
ATELIER_OP(rope_half_backward);

}  // namespace atelier::ops
