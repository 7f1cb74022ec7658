#include "ops/cuda/wide_attention.hpp"

#include <algorithm>

#include "ops/cuda/kernel.hpp"
#include "ops/cuda/products.hpp"
#include "ops/cuda/workspaces.hpp"

namespace atelier::ops::cuda {
namespace {

constexpr int warps = 8;  // rows of a block of the softmax

/// A warp a row of `keys` numbers, in place.
__global__ void softmax_kernel(std::int64_t rows, std::int64_t keys, float* scores) {
    const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * warps + threadIdx.x / warp_size;
    if (row >= rows) return;  // whole warps leave
    const std::int64_t first = threadIdx.x % warp_size * 4;
    float* at = scores + row * keys;
    float top = -INFINITY, sum = 0;
    for (std::int64_t j = first; j < keys; j += warp_size * 4) {
        const Pack<4> p = load<4>(at + j);
        for (int k = 0; k < 4; ++k) top = fmaxf(top, p.v[k]);
    }
    top = warp_max(top);
    for (std::int64_t j = first; j < keys; j += warp_size * 4) {
        Pack<4> p = load<4>(at + j);
        for (int k = 0; k < 4; ++k) sum += p.v[k] = expf(p.v[k] - top);
        store(at + j, p);
    }
    const float inverse = 1.0f / warp_sum(sum);
    for (std::int64_t j = first; j < keys; j += warp_size * 4) {
        Pack<4> p = load<4>(at + j);
        for (int k = 0; k < 4; ++k) p.v[k] *= inverse;
        store(at + j, p);
    }
}

/// Rows of one head of a batch entry's tokens.
MatrixView head_rows(const float* data, std::int64_t first_row, std::int64_t rows, std::int64_t head, std::int64_t head_dim, std::int64_t stride) {
    return {const_cast<float*>(data) + first_row * stride + head * head_dim, rows, head_dim, stride};
}

}  // namespace

// Floor of a block's softmax: 2 * 4 * queries * keys bytes; of the products 4 * queries * keys * head_dim floating point operations in
// fp32 outside of the tensor cores.
void wide_attention(const AttentionShape& s, const float* q, AttentionKeys own, float* out, const float* log_sum_exp, float* workspace) {
    ATELIER_CHECK(s.shared_keys == 0 && s.own_limit == nullptr && s.own_valid == nullptr && log_sum_exp == nullptr,
                  "attention with heads of {} channels has neither shared keys, masks nor a gradient on a device", s.head_dim);
    // The products' algorithms take operands at multiples of 16 bytes.
    ATELIER_CHECK(in_fours({s.head_dim, s.own_keys, s.q_stride, s.own_stride, s.out_stride}, {q, own.k.f32(), own.v.f32(), out}),
                  "attention of heads of {} channels over {} keys: multiples of four needed", s.head_dim, s.own_keys);
    for (std::int64_t b = 0; b < s.batch; ++b)
        for (std::int64_t h = 0; h < s.heads; ++h) {
            const std::int64_t kv = h / (s.heads / s.kv_heads);
            const MatrixView keys = head_rows(own.k.f32(), b * s.own_keys, s.own_keys, kv, s.head_dim, s.own_stride);
            const MatrixView values = head_rows(own.v.f32(), b * s.own_keys, s.own_keys, kv, s.head_dim, s.own_stride);
            for (std::int64_t first = 0; first < s.queries; first += wide_attention_queries) {
                const std::int64_t rows = std::min(wide_attention_queries, s.queries - first), at = b * s.queries + first;
                const MatrixView scores{workspace, rows, s.own_keys, s.own_keys};
                matmul_in_fp32(false, true, s.scale, head_rows(q, at, rows, h, s.head_dim, s.q_stride), keys, 0.0f, scores);
                launch(softmax_kernel, {ceil_div(rows, warps)}, warps * warp_size, 0, rows, s.own_keys, workspace);
                matmul_in_fp32(false, false, 1.0f, scores, values, 0.0f, head_rows(out, at, rows, h, s.head_dim, s.out_stride));
            }
        }
}

}  // namespace atelier::ops::cuda
