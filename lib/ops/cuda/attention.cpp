#include "ops/attention.hpp"

#include <algorithm>

#include "ops/cuda/attention_keys.hpp"
#include "ops/cuda/context.hpp"
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

/// A dense call: queries [first, first + count), the first `keys` of [shared, own]. Its statistics stand alone, [batch, heads, count], until the next
/// call; all queries' are [batch, heads, queries].
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

/// Whether dense calls serve: not fp32, masks, odd heads, nor queries without keys.
bool is_dense(const AttentionShape& s) {
    if (product_precision() != ProductPrecision::bf16 || s.head_dim % 8 != 0 || s.head_dim > 128 || s.shared_valid != nullptr || s.own_valid != nullptr)
        return false;
    bool dense = true;
    each_run(s, [&](const Run& run) { dense = dense && run.keys >= (run.causal ? run.count : 1); });
    return dense;
}

/// Whether the library can read tokens where they are: bf16 at multiples of 16 bytes.
bool is_readable(Operand tokens, std::int64_t stride) {
    return tokens.is_bf16() && stride % 8 == 0 && reinterpret_cast<std::uintptr_t>(tokens.bf16()) % 16 == 0;
}

/// What the library's calls read: where it lies, or packed into the workspace. Keys that lie in two places are packed, shared ones once for
/// each batch entry, its own behind them.
struct Inputs {
    Inputs(const AttentionShape& s, const Packed& p, Operand query, AttentionKeys shared, AttentionKeys own) {
        if (is_readable(query, s.q_stride)) {
            q = query.bf16(), q_stride = s.q_stride;
        } else {
            copy_columns(s.batch * s.queries, p.q_width(), query, s.q_stride, p.q, p.q_width());
            q = p.q, q_stride = p.q_width();
        }
        if (s.shared_keys == 0 && is_readable(own.k, s.own_stride) && is_readable(own.v, s.own_stride)) {
            k = own.k.bf16(), v = own.v.bf16(), kv_stride = s.own_stride;
        } else {
            pack_keys(s, shared, own, p.k, p.v);
            k = p.k, v = p.v, kv_stride = p.kv_width();
        }
    }
    const std::uint16_t *q, *k, *v;
    std::int64_t q_stride, kv_stride;
};

/// One query with one key, a text's first before a picture: the library has no gradient for it.
bool is_single_key(const DenseAttention& shape) { return shape.queries == 1 && shape.keys == 1; }

DenseAttention dense_shape(const AttentionShape& s, const Inputs& in, std::int64_t out_stride, const Run& run) {
    return {.batch = s.batch, .queries = run.count, .keys = run.keys, .heads = s.heads, .kv_heads = s.kv_heads, .head_dim = s.head_dim,
            .entry_queries = s.queries, .entry_keys = s.shared_keys + s.own_keys, .q_stride = in.q_stride, .kv_stride = in.kv_stride,
            .out_stride = out_stride, .q_gradient_stride = s.heads * s.head_dim, .kv_gradient_stride = s.kv_heads * s.head_dim, .causal = run.causal, .scale = s.scale};
}

void check_workspace(std::int64_t needed, const Tensor& workspace) {
    ATELIER_CHECK(workspace.elements() >= needed, "attention needs a workspace of {} numbers, found {}", needed, workspace.elements());
}

/// What a run's backward reads and writes: of the first entry and head. `log_sum_exp` of all queries, from the run's first on.
struct BackwardOperands {
    const std::uint16_t *q, *k, *v, *out;
    const float* log_sum_exp;
    const std::uint16_t* dout;
    std::uint16_t *dq, *dk, *dv;
};

/// In calls that each take no more than the planned room (BackwardCut); they write different entries or heads. Each call's statistics begin
/// where the workspace's do: the library takes multiples of 16 bytes.
void run_backward(const AttentionShape& s, const Packed& p, DenseAttention shape, const BackwardOperands& all) {
    if (is_single_key(shape)) return single_key_attention_backward(shape, all.dout, all.dq, all.dk, all.dv);
    const BackwardCut cut = backward_cut(s);
    const std::int64_t group = s.heads / s.kv_heads;
    shape.batch = cut.entries, shape.kv_heads = cut.kv_heads, shape.heads = cut.kv_heads * group;
    for (std::int64_t entry = 0; entry < s.batch; entry += cut.entries)
        for (std::int64_t kv = 0; kv < s.kv_heads; kv += cut.kv_heads) {
            const std::int64_t query = entry * shape.entry_queries, key = entry * shape.entry_keys, head = kv * group * s.head_dim;
            const std::int64_t key_head = kv * s.head_dim, gradient = query * shape.q_gradient_stride + head;
            const std::int64_t key_gradient = entry * shape.keys * shape.kv_gradient_stride + key_head;
            copy_columns(shape.batch * shape.heads, shape.queries, all.log_sum_exp + (entry * s.heads + kv * group) * s.queries, s.queries, p.stats,
                         shape.queries);
            dense_attention_backward(shape, all.q + query * shape.q_stride + head, all.k + key * shape.kv_stride + key_head,
                                     all.v + key * shape.kv_stride + key_head, all.out + query * shape.out_stride + head,
                                     p.stats, all.dout + gradient, all.dq + gradient,
                                     all.dk + key_gradient, all.dv + key_gradient, {p.room, static_cast<std::size_t>(p.room_bytes)});
        }
}

/// Operands as the plain kernels read them: where they are bf16 (padding masks alone), fp32 in scratch memory at the same strides.
class Widened {
  public:
    Widened(const AttentionShape& s, Operand q) : s_(s), queries_(s.batch * s.queries), own_(s.batch * s.own_keys) {
        if (!q.is_bf16()) return;
        const std::int64_t tokens = queries_ * (s.q_stride + 2 * s.out_stride) + 2 * (s.shared_keys * s.shared_stride + own_ * s.own_stride);
        at_ = scratch_floats(tokens);
    }
    const float* q(Operand q) { return widened(queries_, s_.heads * s_.head_dim, q, s_.q_stride); }
    AttentionKeys shared(AttentionKeys keys) { return both(s_.shared_keys, keys, s_.shared_stride); }
    AttentionKeys own(AttentionKeys keys) { return both(own_, keys, s_.own_stride); }
    /// Of `out` or its gradient.
    const float* out(Operand out) { return widened(queries_, s_.heads * s_.head_dim, out, s_.out_stride); }
    /// Where a kernel writes `out`; put() brings it there.
    float* room_for(OperandOut out) { return out.is_bf16() ? at_ : out.f32(); }
    void put(OperandOut out) const {
        if (out.is_bf16()) copy_columns(queries_, s_.heads * s_.head_dim, at_, s_.out_stride, out, s_.out_stride);
    }

  private:
    const float* widened(std::int64_t rows, std::int64_t width, Operand x, std::int64_t stride) {
        if (!x.is_bf16()) return x.f32();
        float* to = at_;
        at_ += rows * stride;
        copy_columns(rows, width, x, stride, to, stride);
        return to;
    }
    AttentionKeys both(std::int64_t rows, AttentionKeys keys, std::int64_t stride) {
        const std::int64_t width = s_.kv_heads * s_.head_dim;
        return {widened(rows, width, keys.k, stride), widened(rows, width, keys.v, stride)};
    }
    const AttentionShape& s_;
    std::int64_t queries_, own_;
    float* at_ = nullptr;
};

}  // namespace

void attention(const AttentionShape& s, Operand q, AttentionKeys shared, AttentionKeys own, OperandOut out, float* log_sum_exp,
               const Tensor& workspace) {
    check_workspace(attention_workspace(s), workspace);
    if (s.head_dim > plain_attention_max_head) return wide_attention(s, q.f32(), own, out.f32(), log_sum_exp, workspace.f32());
    if (!is_dense(s)) {
        Widened wide(s, q);
        const float* wide_q = wide.q(q);
        const AttentionKeys wide_shared = wide.shared(shared), wide_own = wide.own(own);
        plain_attention(s, wide_q, wide_shared, wide_own, wide.room_for(out), log_sum_exp, workspace.f32());
        return wide.put(out);
    }
    const Packed p(s, workspace.f32(), false);
    const Inputs in(s, p, q, shared, own);
    const bool in_place = is_readable(out, s.out_stride);
    std::uint16_t* to = in_place ? out.bf16() : p.out;
    const std::int64_t out_stride = in_place ? s.out_stride : p.q_width();
    each_run(s, [&](const Run& run) {
        const DenseAttention shape = dense_shape(s, in, out_stride, run);
        // Statistics are always asked for: without them the library may take another algorithm, and other bits.
        const auto attend = is_single_key(shape) ? single_key_attention : dense_attention;
        attend(shape, in.q + run.first * in.q_stride, in.k, in.v, to + run.first * out_stride, p.stats);
        if (log_sum_exp != nullptr)
            copy_columns(s.batch * s.heads, run.count, p.stats, run.count, log_sum_exp + run.first, s.queries);
    });
    if (!in_place) copy_columns(s.batch * s.queries, p.q_width(), p.out, p.q_width(), out, s.out_stride);
}

void attention_backward(const AttentionShape& s, Operand q, AttentionKeys shared, AttentionKeys own, Operand out, const float* log_sum_exp,
                        Operand dout, float* dq, AttentionKeyGradients shared_gradients, AttentionKeyGradients own_gradients,
                        const Tensor& workspace) {
    check_workspace(attention_backward_workspace(s), workspace);
    if (!is_dense(s)) {
        Widened wide(s, q);
        const float *wide_q = wide.q(q), *wide_out = wide.out(out), *wide_dout = wide.out(dout);
        const AttentionKeys wide_shared = wide.shared(shared), wide_own = wide.own(own);
        return plain_attention_backward(s, wide_q, wide_shared, wide_own, wide_out, log_sum_exp, wide_dout, dq, shared_gradients, own_gradients,
                                        workspace.f32());
    }
    const Packed p(s, workspace.f32(), true);
    const std::int64_t q_width = p.q_width();
    const Inputs in(s, p, q, shared, own);
    const bool in_place = is_readable(out, s.out_stride);
    if (!in_place) copy_columns(s.batch * s.queries, q_width, out, s.out_stride, p.out, q_width);  // exact: they came from bf16
    const std::uint16_t* from = in_place ? out.bf16() : p.out;
    const std::int64_t out_stride = in_place ? s.out_stride : q_width;
    const bool takes_gradient = is_readable(dout, s.out_stride) && s.out_stride == q_width;  // of the stride of dq
    if (!takes_gradient) copy_columns(s.batch * s.queries, q_width, dout, s.out_stride, p.dout, q_width);
    const std::uint16_t* d_out = takes_gradient ? dout.bf16() : p.dout;
    const bool adds = key_limits(s).runs > 0;  // else one run sees all keys
    if (adds)
        for (float* gradient : {own_gradients.dk, own_gradients.dv}) zero_columns(s.batch * s.own_keys, p.kv_width(), gradient, s.own_stride);
    each_run(s, [&](const Run& run) {
        const std::int64_t at = run.first * q_width;
        run_backward(s, p, dense_shape(s, in, out_stride, run),
                     {in.q + run.first * in.q_stride, in.k, in.v, from + run.first * out_stride, log_sum_exp + run.first, d_out + at, p.dq + at, p.dk, p.dv});
        unpack_key_gradients(s, run.keys, adds, p.dk, p.dv, shared_gradients, own_gradients);
    });
    copy_columns(s.batch * s.queries, q_width, p.dq, q_width, dq, s.q_stride);
}

}  // namespace atelier::ops::cuda
