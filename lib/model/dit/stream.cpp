#include "model/dit/stream.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "core/device.hpp"
#include "core/parallel.hpp"
#include "nn/linear.hpp"
#include "ops/activation.hpp"
#include "ops/modulation.hpp"
#include "ops/precision.hpp"
#include "ops/rope.hpp"
#include "ops/rows.hpp"

namespace atelier::dit {
namespace {

/// `beside`: another layer's, whose memory serves for all that isn't kept; null: none's.
BlockActivations plan_block(const Dit& dit, std::int64_t rows, Keep keep, const BlockActivations* beside, Arena& arena) {
    const Config& c = dit.config();
    const Device there = dit.device();
    const std::int64_t w = c.width(), m = c.mlp_width();
    BlockActivations a;
    if (beside != nullptr) {
        a = *beside;
    } else {
        a.middle = arena.take_f32({rows, w}, there);
        for (Tensor* t : {&a.y1, &a.y2}) *t = arena.take(dit.operand_dtype(), {rows, w}, there);
        for (Tensor* t : {&a.mean1, &a.inv1, &a.mean2, &a.inv2}) *t = arena.take_f32({rows}, there);
        a.qkv = arena.take(dit.operand_dtype(), {rows, 3 * w}, there);
        a.inverse_rms = arena.take_f32({rows, 2 * c.heads}, there);
        a.act = arena.take(dit.operand_dtype(), {rows, m}, there);
    }
    if (beside == nullptr || keep == Keep::products) {
        a.qkv_in = arena.take(dit.result_dtype(), {rows, 3 * w}, there);
        a.value_gate = arena.take(dit.result_dtype(), {rows, 2 * m}, there);
    }
    a.attended = arena.take(dit.operand_dtype(), {rows, w}, there);
    a.log_sum_exp = arena.take_f32({rows, c.heads}, there);
    for (Tensor* t : {&a.branch1, &a.branch2}) *t = arena.take(dit.result_dtype(), {rows, w}, there);
    return a;
}

/// The memory of fp32 numbers for as many of another type.
Tensor as(DType dtype, const Tensor& t) { return Tensor(t.raw(), dtype, t.shape(), t.device()); }

/// The first R rows of every buffer.
BlockActivations head(const BlockActivations& a, std::int64_t rows) {
    BlockActivations h = a;
    for (Tensor* t : {&h.y1, &h.attended, &h.branch1, &h.middle, &h.y2, &h.branch2, &h.mean1, &h.inv1, &h.mean2, &h.inv2,
                      &h.qkv_in, &h.qkv, &h.inverse_rms, &h.log_sum_exp, &h.value_gate, &h.act})
        if (!t->empty()) *t = t->slice(0, rows);
    return h;
}

ops::ModulationShape modulation_shape(const Config& c, const StreamShape& s) {
    return {s.groups, s.rows, c.width(), 4 * c.width(), c.eps};
}

/// A prompt's part of a run of tokens.
struct Part {
    std::int64_t first = 0, rows = 0;  ///< of the run's tokens
    ops::QkNormRopeShape rope;
    const float *cosine = nullptr, *sine = nullptr;
    ops::AttentionShape attention;
    std::int64_t first_key = 0;        ///< of the shared keys
};

Part part(const Config& c, const StreamShape& s, std::int64_t index) {
    const PromptRange& prompt = s.prompts[static_cast<std::size_t>(index)];
    Part p;
    ops::AttentionShape& a = p.attention;
    std::int64_t period = 0, angles = 0;
    if (s.of_targets) {
        a.batch = s.groups / std::ssize(s.prompts);
        a.queries = a.own_keys = period = s.rows;
        a.shared_keys = prompt.tokens;
        if (s.valid != nullptr) a.shared_valid = s.valid + prompt.first;
        p.first_key = prompt.first;
        p.first = index * a.batch * s.rows;
        angles = index * s.rows;
    } else {
        a.queries = a.own_keys = period = prompt.tokens;
        a.own_limit = s.limit + prompt.first;
        if (s.valid != nullptr) a.own_valid = s.valid + prompt.first;
        p.first = angles = prompt.first;
    }
    a.heads = a.kv_heads = c.heads;
    a.head_dim = c.head_dim;
    a.q_stride = a.own_stride = 3 * c.width();
    a.shared_stride = 2 * c.width();
    a.out_stride = c.width();
    a.scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
    p.rows = a.batch * a.queries;
    p.rope = {p.rows, c.heads, c.head_dim, period, c.eps};
    p.cosine = s.cosine + angles * c.head_dim / 2;
    p.sine = s.sine + angles * c.head_dim / 2;
    return p;
}

ops::AttentionKeys keys_of(const Tensor& shared, const Part& p, std::int64_t width) {
    if (shared.empty()) return {};
    const ops::Operand first = ops::Operand(shared).from(p.first_key * 2 * width);
    return {first, first.from(width)};
}
ops::AttentionKeyGradients key_gradients_of(const Tensor& shared, const Part& p, std::int64_t width) {
    if (shared.empty()) return {};
    float* first = shared.f32() + p.first_key * 2 * width;
    return {first, first + width};
}

/// fp32 operands of a product to come: rounded where the CPU's products take bf16 and don't round.
void round_operand(std::int64_t rows, std::int64_t width, const ops::OperandOut& x) {
    if (!x.is_bf16()) ops::round_operand(rows, width, width, x.f32());
}

/// Calls f(part) for every prompt. On CPUs threads take a prompt each where there are enough: its rows stay in one core's cache.
template <typename Function>
void each_part(const Dit& dit, const StreamShape& s, Function f) {
    const std::int64_t count = std::ssize(s.prompts);
    const std::int64_t together = dit.device() == Device::cpu && count >= threads() ? 1 : count;
    const ops::ProductPrecision precision = ops::product_precision();  // the caller's
    parallel_for(count, together, [&](std::int64_t begin, std::int64_t end) {
        const ops::PrecisionScope of_the_caller(precision);
        for (std::int64_t i = begin; i < end; ++i) f(part(dit.config(), s, i));
    });
}

}  // namespace

void StreamBuffers::plan(const Dit& dit, std::int64_t group_count, std::int64_t rows, std::int64_t max_keys, Keep kept,
                         bool final_norm, Arena& arena) {
    const Config& c = dit.config();
    const Device there = dit.device();
    const std::int64_t w = c.width(), m = c.mlp_width();
    groups = group_count;
    max_rows = rows;
    keep = kept;
    // Inference needs two: a block's input and its output.
    const std::int64_t states = keep == Keep::nothing ? 2 : c.layers + (final_norm ? 1 : 0);
    for (std::int64_t i = 0; i < std::max<std::int64_t>(states, 2); ++i) inputs.push_back(arena.take_f32({rows, w}, there));
    const bool shares = keep == Keep::products || keep == Keep::branches, has_each = keep == Keep::activations || shares;
    for (std::int64_t i = 0; i < (has_each ? c.layers : 1); ++i)
        blocks.push_back(plan_block(dit, rows, keep, shares && i > 0 ? &blocks[0] : nullptr, arena));
    const PromptRange longest{0, max_keys - rows / groups};
    StreamShape most;
    most.groups = groups;
    most.rows = rows / groups;
    most.of_targets = true;
    most.prompts = std::span(&longest, 1);
    const ops::AttentionShape attention = part(c, most, 0).attention;
    const bool training = keep != Keep::nothing;
    attention_workspace = arena.take_f32({training ? ops::attention_backward_workspace(attention) : ops::attention_workspace(attention)}, there);
    if (!training) blocks[0].log_sum_exp = {};  // the backward pass alone reads it
    if (!training) return;
    d_x = arena.take_f32({rows, w}, there);
    d_y = arena.take_f32({rows, w}, there);
    d_qkv = arena.take_f32({rows, 3 * w}, there);
    d_branch = dit.operand_dtype() == DType::f32 ? d_y : arena.take(dit.operand_dtype(), {rows, w}, there);
    d_value_gate = arena.take(dit.operand_dtype(), {rows, 2 * m}, there);
    d_act = arena.take(dit.result_dtype(), {rows, m}, there);
    rope_workspace = arena.take_f32({ops::qk_norm_rope_workspace({rows, c.heads, c.head_dim, rows, c.eps})}, there);
}

void block_forward(const Dit& dit, const nn::ParameterStore& weights, const BlockPlace& place, const StreamShape& s,
                   const ModulationBuffers& m, const Tensor& x, const Tensor& shared_keys, const BlockActivations& all,
                   const Tensor& attention_workspace, bool keys_only, const Tensor& y) {
    const Config& c = dit.config();
    const BlockParameters& p = dit.blocks()[static_cast<std::size_t>(place.layer)];
    const std::int64_t w = c.width(), mlp = c.mlp_width(), rows = s.groups * s.rows;
    const BlockActivations a = head(all, rows);
    const ops::ModulationShape mod = modulation_shape(c, s);
    const float *scale1 = m.blocks.f32(), *gate1 = scale1 + w, *scale2 = gate1 + w, *gate2 = scale2 + w;
    const bool has_products = place.kept == Keep::products, has_branches = has_products || place.kept == Keep::branches;

    if (!place.is_normed) ops::layer_norm_modulate(mod, x.f32(), scale1, a.y1, a.mean1.f32(), a.inv1.f32());
    if (!has_products) nn::project(weights, std::array{p.q, p.k, p.v}, a.y1, a.qkv_in);
    each_part(dit, s, [&](const Part& t) {
        const ops::OperandOut qkv = ops::OperandOut(a.qkv).from(t.first * 3 * w);
        ops::qk_norm_rope(t.rope, ops::Operand(a.qkv_in).from(t.first * 3 * w), weights[p.q_norm].f32(), weights[p.k_norm].f32(), t.cosine, t.sine, qkv,
                          a.inverse_rms.f32() + t.first * 2 * c.heads);
        round_operand(t.rows, 3 * w, qkv);
        if (keys_only || has_branches) return;
        ops::attention(t.attention, qkv, keys_of(shared_keys, t, w), {qkv.from(w), qkv.from(2 * w)}, ops::OperandOut(a.attended).from(t.first * w),
                       a.log_sum_exp.empty() ? nullptr : a.log_sum_exp.f32() + t.first * c.heads, attention_workspace);
    });
    if (keys_only) return;
    if (!has_branches) nn::project(weights, p.out, a.attended, a.branch1);
    ops::gate_residual_norm_modulate(mod, x.f32(), gate1, a.branch1, a.middle.f32(), scale2, a.y2, a.mean2.f32(), a.inv2.f32());
    if (!has_products) nn::project(weights, std::array{p.mlp_value, p.mlp_gate}, a.y2, a.value_gate);
    ops::swiglu(rows, mlp, ops::Operand(a.value_gate).from(mlp), a.value_gate, 2 * mlp, a.act);
    if (!has_branches) nn::project(weights, p.mlp_out, a.act, a.branch2);
    if (y.empty()) return;
    if (place.next == nullptr) return ops::gate_residual(mod, a.middle.f32(), gate2, a.branch2, y.f32());
    const BlockActivations& n = *place.next;  // every block's modulation is the same
    ops::gate_residual_norm_modulate(mod, a.middle.f32(), gate2, a.branch2, y.f32(), scale1, n.y1, n.mean1.f32(), n.inv1.f32());
}

void block_backward(const Dit& dit, const nn::ParameterStore& weights, const nn::ParameterStore& gradients,
                    std::int64_t layer, const StreamShape& s, ModulationBuffers& m, const Tensor& x,
                    const Tensor& shared_keys, const Tensor& shared_key_gradients, const Tensor& own_key_gradients,
                    const BlockActivations& all, StreamBuffers& buffers, bool keys_only) {
    const Config& c = dit.config();
    const BlockParameters& p = dit.blocks()[static_cast<std::size_t>(layer)];
    const std::int64_t w = c.width(), mlp = c.mlp_width(), rows = s.groups * s.rows;
    const BlockActivations a = head(all, rows);
    const ops::ModulationShape mod = modulation_shape(c, s);
    const float *scale1 = m.blocks.f32(), *gate1 = scale1 + w, *scale2 = gate1 + w, *gate2 = scale2 + w;
    float *d_scale1 = m.d_blocks.f32(), *d_gate1 = d_scale1 + w, *d_scale2 = d_gate1 + w, *d_gate2 = d_scale2 + w;
    const DType results = dit.result_dtype();
    const Tensor d_x = buffers.d_x.slice(0, rows), d_y = as(results, buffers.d_y.slice(0, rows)), d_qkv = buffers.d_qkv.slice(0, rows);
    const Tensor d_branch = buffers.d_branch.slice(0, rows), d_vg = buffers.d_value_gate.slice(0, rows);
    const Tensor d_act = buffers.d_act.slice(0, rows);
    float* dqkv = d_qkv.f32();

    if (keys_only) {
        clear(d_x);
        clear(d_qkv);
    } else {
        // MLP branch: y = middle + gate2 * branch2
        ops::gate_residual_backward(mod, gate2, a.branch2, d_x.f32(), d_branch, d_gate2);
        nn::project_backward(weights, gradients, p.mlp_out, a.act, d_branch, d_act);
        ops::swiglu_backward(rows, mlp, ops::Operand(a.value_gate).from(mlp), a.value_gate, 2 * mlp, d_act, ops::OperandOut(d_vg).from(mlp), d_vg);
        nn::project_backward(weights, gradients, std::array{p.mlp_value, p.mlp_gate}, a.y2, d_vg, d_y);
        ops::layer_norm_modulate_backward(mod, a.middle.f32(), scale2, a.mean2.f32(), a.inv2.f32(), d_y, d_x.f32(), d_scale2);
        // Attention branch: middle = x + gate1 * branch1. d_act's memory holds the gradient of the attention's output.
        ops::gate_residual_backward(mod, gate1, a.branch1, d_x.f32(), d_branch, d_gate1);
        const Tensor d_attended = Tensor(d_act.raw(), results, {rows, w}, d_act.device());
        nn::project_backward(weights, gradients, p.out, a.attended, d_branch, d_attended);
        round_operand(rows, w, d_attended);
        each_part(dit, s, [&](const Part& t) {
            const ops::Operand qkv = ops::Operand(a.qkv).from(t.first * 3 * w);
            float* dq = dqkv + t.first * 3 * w;
            ops::attention_backward(t.attention, qkv, keys_of(shared_keys, t, w), {qkv.from(w), qkv.from(2 * w)},
                                    ops::Operand(a.attended).from(t.first * w), a.log_sum_exp.f32() + t.first * c.heads, ops::Operand(d_attended).from(t.first * w), dq,
                                    key_gradients_of(shared_key_gradients, t, w), {dq + w, dq + 2 * w},
                                    buffers.attention_workspace);
        });
    }
    if (!own_key_gradients.empty()) ops::add_columns(rows, 2 * w, own_key_gradients.f32(), 2 * w, dqkv + w, 3 * w);
    // Queries, keys and values have served: where products take other numbers than fp32 their memory takes the gradient of what they came from.
    const Tensor d_in = a.qkv.dtype() == DType::f32 ? d_qkv : a.qkv;
    for (std::int64_t i = 0; i < std::ssize(s.prompts); ++i) {
        const Part t = part(c, s, i);
        ops::qk_norm_rope_backward(t.rope, ops::Operand(a.qkv_in).from(t.first * 3 * w), weights[p.q_norm].f32(), weights[p.k_norm].f32(), t.cosine, t.sine,
                                   a.inverse_rms.f32() + t.first * 2 * c.heads, dqkv + t.first * 3 * w, ops::OperandOut(d_in).from(t.first * 3 * w),
                                   nn::vector_gradient(gradients, p.q_norm), nn::vector_gradient(gradients, p.k_norm), buffers.rope_workspace.f32());
    }
    nn::project_backward(weights, gradients, std::array{p.q, p.k, p.v}, a.y1, d_in, d_y);
    ops::layer_norm_modulate_backward(mod, x.f32(), scale1, a.mean1.f32(), a.inv1.f32(), d_y, d_x.f32(), d_scale1);
}

}  // namespace atelier::dit
