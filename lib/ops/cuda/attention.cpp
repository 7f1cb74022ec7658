#include "ops/attention.hpp"

#include <algorithm>

#include "ops/cuda/dense_attention.hpp"
#include "ops/cuda/functions.hpp"
#include "ops/cuda/plain_attention.hpp"
#include "ops/cuda/products.hpp"
#include "ops/cuda/wide_attention.hpp"
#include "ops/cuda/workspaces.hpp"

// bf16 attention as dense calls of the library: runs of queries that see the same keys (a picture, the target) or one more each
// (text), over [shared, own] keys packed side by side. What the library has nothing for (fp32, padding masks, odd heads) goes to
// the plain kernels, and heads too wide for these to products.
namespace atelier::ops::cuda {
namespace {

bool is_dense(const AttentionShape& s) {
    return product_precision() == ProductPrecision::bf16 && s.head_dim % 8 == 0 && s.head_dim <= 128 && s.shared_valid == nullptr &&
           s.own_valid == nullptr && s.shared_keys + (s.own_limit == nullptr ? s.own_keys : s.own_limit[0]) > 0;
}

/// A dense call: queries [first, first + count), the first `keys` of [shared, own].
struct Run {
    std::int64_t first, count, keys;
    bool causal;
};

template <typename Function>
void each_run(const AttentionShape& s, Function function) {
    const KeyLimits limits = key_limits(s);
    if (limits.runs == 0) return function(Run{0, s.queries, s.shared_keys + s.own_keys, false});
    for (int r = 0; r < limits.runs; ++r) {
        const std::int64_t first = limits.run[r].first, end = r + 1 < limits.runs ? limits.run[r + 1].first : s.queries;
        const std::int64_t last_limit = limits.run[r].limit + limits.run[r].slope * (end - 1 - first);
        function(Run{first, end - first, s.shared_keys + std::min(last_limit, s.own_keys), limits.run[r].slope != 0});
    }
}

DenseAttention dense_shape(const AttentionShape& s, const Packed& p, const Run& run) {
    return {s.batch, run.count, run.keys, s.heads, s.kv_heads, s.head_dim, s.queries * p.q_width(), (s.shared_keys + s.own_keys) * p.kv_width(),
            run.causal, s.scale};
}

/// Shared keys once for each batch entry, its own behind them.
void pack_keys(const AttentionShape& s, std::int64_t width, const float* shared, const float* own, std::uint16_t* to) {
    for (std::int64_t b = 0; b < s.batch; ++b) {
        std::uint16_t* entry = to + b * (s.shared_keys + s.own_keys) * width;
        if (s.shared_keys > 0) to_bf16(s.shared_keys, width, shared, s.shared_stride, entry, width);
        if (s.own_keys > 0)
            to_bf16(s.own_keys, width, own + b * s.own_keys * s.own_stride, s.own_stride, entry + s.shared_keys * width, width);
    }
}

void pack(const AttentionShape& s, const Packed& p, const float* q, AttentionKeys shared, AttentionKeys own) {
    to_bf16(s.batch * s.queries, p.q_width(), q, s.q_stride, p.q, p.q_width());
    pack_keys(s, p.kv_width(), shared.k, own.k, p.k);
    pack_keys(s, p.kv_width(), shared.v, own.v, p.v);
}

/// A run's statistics stand alone in the library's call; all queries' are [batch, heads, queries].
float* run_stats(const AttentionShape& s, const Packed& p, const Run& run) { return p.stats + s.batch * s.heads * run.first; }

/// A run's gradient of keys or values to the shared keys (added, batch entries in order) and the own keys (added).
void unpack_key_gradient(const AttentionShape& s, std::int64_t width, const Run& run, const std::uint16_t* from, float* shared, float* own) {
    const std::int64_t own_keys = run.keys - s.shared_keys;
    for (std::int64_t b = 0; b < s.batch; ++b) {
        const std::uint16_t* entry = from + b * run.keys * width;
        if (shared != nullptr && s.shared_keys > 0) from_bf16(s.shared_keys, width, entry, width, shared, s.shared_stride, true);
        if (own_keys > 0)
            from_bf16(own_keys, width, entry + s.shared_keys * width, width, own + b * s.own_keys * s.own_stride, s.own_stride, true);
    }
}

void check_workspace(const AttentionShape& s, const Tensor& workspace) {
    ATELIER_CHECK(workspace.elements() >= attention_workspace(s), "attention needs a workspace of {} numbers, found {}",
                  attention_workspace(s), workspace.elements());
}

}  // namespace

void attention(const AttentionShape& s, const float* q, AttentionKeys shared, AttentionKeys own, float* out, float* log_sum_exp,
               const Tensor& workspace) {
    check_workspace(s, workspace);
    if (s.head_dim > plain_attention_max_head) return wide_attention(s, q, own, out, log_sum_exp, workspace.f32());
    if (!is_dense(s)) return plain_attention(s, q, shared, own, out, log_sum_exp, workspace.f32());
    const Packed p(s, workspace.f32());
    pack(s, p, q, shared, own);
    each_run(s, [&](const Run& run) {
        // Statistics are always asked for: without them the library may take another algorithm, and other bits.
        const std::int64_t at = run.first * p.q_width();
        dense_attention(dense_shape(s, p, run), p.q + at, p.k, p.v, p.out + at, run_stats(s, p, run));
        if (log_sum_exp != nullptr)
            copy_columns(s.batch * s.heads, run.count, run_stats(s, p, run), run.count, log_sum_exp + run.first, s.queries);
    });
    from_bf16(s.batch * s.queries, p.q_width(), p.out, p.q_width(), out, s.out_stride, false);
}

void attention_backward(const AttentionShape& s, const float* q, AttentionKeys shared, AttentionKeys own, const float* out,
                        const float* log_sum_exp, const float* dout, float* dq, AttentionKeyGradients shared_gradients,
                        AttentionKeyGradients own_gradients, const Tensor& workspace) {
    check_workspace(s, workspace);
    if (!is_dense(s))
        return plain_attention_backward(s, q, shared, own, out, log_sum_exp, dout, dq, shared_gradients, own_gradients, workspace.f32());
    const Packed p(s, workspace.f32());
    const std::int64_t q_width = p.q_width(), kv_width = p.kv_width();
    pack(s, p, q, shared, own);
    to_bf16(s.batch * s.queries, q_width, out, s.out_stride, p.out, q_width);  // exact: they came from bf16
    to_bf16(s.batch * s.queries, q_width, dout, s.out_stride, p.dout, q_width);
    for (std::int64_t row = 0; row < s.batch; ++row) {
        const std::int64_t at = row * s.own_keys * s.own_stride;
        zero_columns(s.own_keys, kv_width, own_gradients.dk + at, s.own_stride);
        zero_columns(s.own_keys, kv_width, own_gradients.dv + at, s.own_stride);
    }
    each_run(s, [&](const Run& run) {
        const std::int64_t at = run.first * q_width;
        copy_columns(s.batch * s.heads, run.count, log_sum_exp + run.first, s.queries, run_stats(s, p, run), run.count);
        dense_attention_backward(dense_shape(s, p, run), p.q + at, p.k, p.v, p.out + at, run_stats(s, p, run), p.dout + at, p.dq + at, p.dk,
                                 p.dv);
        unpack_key_gradient(s, kv_width, run, p.dk, shared_gradients.dk, own_gradients.dk);
        unpack_key_gradient(s, kv_width, run, p.dv, shared_gradients.dv, own_gradients.dv);
    });
    from_bf16(s.batch * s.queries, q_width, p.dq, q_width, dq, s.q_stride, false);
}

}  // namespace atelier::ops::cuda
