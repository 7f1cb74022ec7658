#include "model/vlm/training.hpp"

#include <algorithm>
#include <cmath>
#include <map>

#include "core/device.hpp"
#include "core/parallel.hpp"
#include "model/vlm/tables.hpp"
#include "nn/linear.hpp"
#include "ops/activation.hpp"
#include "ops/attention.hpp"
#include "ops/linear.hpp"
#include "ops/norm.hpp"
#include "ops/rope.hpp"
#include "ops/rows.hpp"

namespace atelier::vlm {
namespace {

using nn::ParameterStore;

/// Around every use of a row of a block.
void acquire(const ParameterStore& store, int row) {
    const int block = store.table().spec(row).block;
    if (block >= 0) store.acquire(block);
}
void release(const ParameterStore& store, int row) {
    const int block = store.table().spec(row).block;
    if (block >= 0) store.release(block);
}

void affine(const ParameterStore& weights, const Affine& map, const Tensor& x, const Tensor& y) {
    nn::project(weights, map.weight, x, y);
    if (map.bias >= 0) ops::add_columns(y.size(0), y.size(1), weights[map.bias].f32(), 0, y.f32(), y.size(1));  // one row, to all of y
}

/// Gradients of the map, or of its adapter alone; dx is written unless empty.
void affine_backward(const ParameterStore& weights, const ParameterStore& gradients, const Affine& map, const Tensor& x,
                     const Tensor& dy, const Tensor& dx) {
    if (!gradients.has_values()) return nn::project_backward(weights, gradients, map.weight, x, dy, dx);
    ops::linear_backward_weight(dy, x, gradients[map.weight], map.bias < 0 ? Tensor() : gradients[map.bias]);
    if (!dx.empty()) ops::linear_backward_input(dy, weights[map.weight], dx, false);
}

void layer_norm(const ParameterStore& weights, const Affine& n, const Tensor& x, const Tensor& y, const Tensor& mean,
                const Tensor& inverse) {
    ops::layer_norm({x.size(0), x.size(1), vision_eps}, x.f32(), weights[n.weight].f32(), weights[n.bias].f32(), y.f32(),
                    mean.f32(), inverse.f32());
}

void layer_norm_backward(const ParameterStore& weights, const ParameterStore& gradients, const Affine& n, const Tensor& x,
                         const Tensor& mean, const Tensor& inverse, const Tensor& dy, const Tensor& dx) {
    ops::layer_norm_backward({x.size(0), x.size(1), vision_eps}, x.f32(), weights[n.weight].f32(), mean.f32(), inverse.f32(),
                             dy.f32(), dx.f32(), true, nn::vector_gradient(gradients, n.weight), nn::vector_gradient(gradients, n.bias));
}

ops::AttentionShape picture_attention(const VisionConfig& v, const GridThw& grid) {
    ops::AttentionShape s;
    s.queries = s.own_keys = grid[1] * grid[2];
    s.heads = s.kv_heads = v.heads;
    s.head_dim = v.head_dim();
    s.q_stride = s.own_stride = 3 * v.hidden;
    s.out_stride = v.hidden;
    s.scale = 1.0f / std::sqrt(static_cast<float>(v.head_dim()));
    return s;
}

ops::AttentionShape text_attention(const TextConfig& t, const std::vector<std::int32_t>& limits) {
    ops::AttentionShape s;
    s.queries = s.own_keys = static_cast<std::int64_t>(limits.size());
    s.heads = t.heads;
    s.kv_heads = t.kv_heads;
    s.head_dim = t.head_dim;
    s.q_stride = s.out_stride = t.heads * t.head_dim;
    s.own_stride = t.kv_heads * t.head_dim;
    s.scale = 1.0f / std::sqrt(static_cast<float>(t.head_dim));
    s.own_limit = limits.data();
    return s;
}

/// Entries of a list that name rows, in rounds in which none is named twice: the k-th entry of each row in round k, so that a row's come in
/// their order.
struct Rounds {
    std::vector<std::int32_t> entry, row;
    std::vector<std::int64_t> end;  ///< of each round
};
Rounds rounds_of(const std::vector<std::pair<std::int32_t, std::int32_t>>& entries) {  // entry, row
    std::vector<std::vector<std::pair<std::int32_t, std::int32_t>>> by_round;
    std::map<std::int32_t, std::size_t> seen;
    for (const auto& [entry, row] : entries) {
        const std::size_t round = seen[row]++;
        if (round == by_round.size()) by_round.emplace_back();
        by_round[round].emplace_back(entry, row);
    }
    Rounds rounds;
    for (const auto& round : by_round) {
        for (const auto& [entry, row] : round) rounds.entry.push_back(entry), rounds.row.push_back(row);
        rounds.end.push_back(static_cast<std::int64_t>(rounds.entry.size()));
    }
    return rounds;
}

/// What the rows of the position table are blended into, the other way round: for each row of the table up to four patches with their
/// shares, as ops::add_blend_of_rows takes it; as many of these as the row with most patches needs.
std::vector<PositionBlend> table_blends(std::int64_t positions, const PositionBlend& blend) {
    std::vector<PositionBlend> all;
    std::vector<std::size_t> used(static_cast<std::size_t>(positions));
    for (std::size_t i = 0; i < blend.row.size(); ++i) {
        if (blend.share[i] == 0) continue;
        const auto row = static_cast<std::size_t>(blend.row[i]);
        const std::size_t at = used[row]++;
        if (at / 4 == all.size()) all.push_back({std::vector<std::int32_t>(4 * used.size()), std::vector<float>(4 * used.size())});
        all[at / 4].row[4 * row + at % 4] = static_cast<std::int32_t>(i / 4);
        all[at / 4].share[4 * row + at % 4] = blend.share[i];
    }
    return all;
}

Tensor list(const std::vector<std::int32_t>& rows) {
    return rows.empty() ? Tensor() : Tensor::of(rows.data(), {static_cast<std::int64_t>(rows.size())});
}

}  // namespace

TrainingPass::TrainingPass(const Vlm& vlm, std::int64_t max_tokens, std::int64_t max_patches, std::int64_t max_rows, Arena& arena)
    : vlm_(vlm), max_tokens_(max_tokens), max_patches_(max_patches), max_rows_(max_rows) {
    const Device device = vlm.device();
    const DeviceScope scope(device);
    const TextConfig& t = vlm.config().text;
    const VisionConfig& v = vlm.config().vision;
    const std::int64_t q_width = t.heads * t.head_dim, kv_width = t.kv_heads * t.head_dim;
    const auto take = [&](Shape shape) { return arena.take_f32(shape, device); };
    const auto rows = [&](std::int64_t width) { return take({max_tokens, width}); };
    limits_.reserve(static_cast<std::size_t>(max_tokens));
    image_rows_.reserve(static_cast<std::size_t>(max_tokens));
    logit_rows_.reserve(static_cast<std::size_t>(max_rows));
    states_ = rows(t.hidden);
    cosine_ = rows(t.head_dim / 2);
    sine_ = rows(t.head_dim / 2);
    logit_in_ = take({max_rows, t.hidden});
    logit_inverse_ = take({max_rows});
    logit_normed_ = take({max_rows, t.hidden});
    d_logit_ = take({max_rows, t.hidden});
    for (std::int64_t l = 0; l < t.layers; ++l) {
        TextActivations a;
        for (Tensor* each : {&a.x, &a.y1, &a.middle, &a.y2}) *each = rows(t.hidden);
        for (Tensor* each : {&a.q_in, &a.q, &a.attended}) *each = rows(q_width);
        for (Tensor* each : {&a.k_in, &a.k, &a.v}) *each = rows(kv_width);
        for (Tensor* each : {&a.gate, &a.up, &a.act}) *each = rows(t.intermediate);
        for (Tensor* each : {&a.inverse1, &a.inverse2}) *each = rows(1);
        a.q_inverse = rows(t.heads);
        a.k_inverse = rows(t.kv_heads);
        a.log_sum_exp = rows(t.heads);
        text_.push_back(a);
    }
    d_states_ = rows(t.hidden);
    d_y_ = rows(t.hidden);
    d_q_ = rows(q_width);
    d_kv_ = take({2 * max_tokens, kv_width});
    d_attended_ = rows(q_width);
    d_gate_up_ = take({2 * max_tokens, t.intermediate});
    d_act_ = rows(t.intermediate);
    ops::AttentionShape text, picture;
    text.queries = text.own_keys = max_tokens;
    text.heads = t.heads, text.kv_heads = t.kv_heads, text.head_dim = t.head_dim;
    picture.queries = picture.own_keys = max_patches;
    picture.heads = picture.kv_heads = v.heads, picture.head_dim = v.head_dim();
    attention_workspace_ = take({std::max(ops::attention_backward_workspace(text), ops::attention_backward_workspace(picture))});
    if (device != Device::cpu) {
        logits_there_ = take({max_rows, t.vocabulary});
        for (Tensor* each : {&tokens_there_, &rows_there_}) *each = arena.take(DType::i32, {std::max(max_tokens, max_rows)}, device);
        const std::int64_t most = std::max(cosine_.elements(), max_patches * v.head_dim() / 2);
        host_cosine_ = arena.take_f32({most});
        host_sine_ = arena.take_f32({most});
    }
    if (max_patches == 0) return;

    const auto patches = [&](std::int64_t width) { return take({max_patches, width}); };
    if (device != Device::cpu) {
        pixels_there_ = patches(v.patch_elements());
        corners_there_ = arena.take(DType::i32, {std::max(max_patches, v.positions), 4}, device);
        shares_there_ = take({std::max(max_patches, v.positions), 4});
        image_rows_there_ = arena.take(DType::i32, {max_patches / (v.merge * v.merge)}, device);
    }
    const std::int64_t pictures = max_patches / (v.merge * v.merge);
    patches_ = patches(v.hidden);
    vision_cosine_ = patches(v.head_dim() / 2);
    vision_sine_ = patches(v.head_dim() / 2);
    for (std::int64_t b = 0; b < v.depth; ++b) {
        VisionActivations a;
        for (Tensor* each : {&a.x, &a.y1, &a.attended, &a.middle, &a.y2}) *each = patches(v.hidden);
        for (Tensor* each : {&a.mean1, &a.inverse1, &a.mean2, &a.inverse2}) *each = patches(1);
        a.qkv = patches(3 * v.hidden);
        a.log_sum_exp = patches(v.heads);
        for (Tensor* each : {&a.fc1, &a.act}) *each = patches(v.intermediate);
        vision_.push_back(a);
    }
    plan_merger(merger_, false, arena);
    for (std::size_t i = 0; i < v.deepstack.size(); ++i) {
        plan_merger(deepstack_mergers_.emplace_back(), true, arena);
        deepstack_.push_back(take({pictures, v.out_hidden}));
        d_deepstack_.push_back(take({pictures, v.out_hidden}));
    }
    picture_tokens_ = take({pictures, v.out_hidden});
    d_picture_tokens_ = take({pictures, v.out_hidden});
    d_patches_ = patches(v.hidden);
    d_branch_ = patches(v.hidden);
    d_vision_y_ = patches(v.hidden);
    d_qkv_ = patches(3 * v.hidden);
    d_vision_act_ = patches(v.intermediate);
    d_merged_ = take({pictures, v.merged()});
    d_merged_act_ = take({pictures, v.merged()});
}

void TrainingPass::plan_merger(MergerActivations& a, bool norm_after_merge, Arena& arena) const {
    const VisionConfig& v = vlm_.config().vision;
    const std::int64_t tokens = max_patches_ / (v.merge * v.merge), normed = norm_after_merge ? tokens : max_patches_;
    a.mean = arena.take_f32({normed}, vlm_.device());
    a.inverse = arena.take_f32({normed}, vlm_.device());
    for (Tensor* each : {&a.merged, &a.fc1, &a.act}) *each = arena.take_f32({tokens, v.merged()}, vlm_.device());
}

// Merge order makes 2 x 2 patches neighbours in memory: merging is a change of shape.
void TrainingPass::forward_merger(const ParameterStore& weights, const Merger& m, bool norm_after_merge, MergerActivations& a,
                                  const Tensor& x, const Tensor& out) const {
    const VisionConfig& v = vlm_.config().vision;
    const std::int64_t n = x.size(0), tokens = n / (v.merge * v.merge);
    const Tensor merged = a.merged.slice(0, tokens), fc1 = a.fc1.slice(0, tokens), act = a.act.slice(0, tokens);
    if (norm_after_merge)
        layer_norm(weights, m.norm, x.reshaped({tokens, v.merged()}), merged, a.mean, a.inverse);
    else
        layer_norm(weights, m.norm, x, merged.reshaped({n, v.hidden}), a.mean, a.inverse);
    affine(weights, m.fc1, merged, fc1);
    ops::gelu_erf(fc1.f32(), act.f32(), act.elements());
    affine(weights, m.fc2, act, out);
}

void TrainingPass::backward_merger(const ParameterStore& weights, const ParameterStore& gradients, const Merger& m,
                                   bool norm_after_merge, MergerActivations& a, const Tensor& x, const Tensor& d_out,
                                   const Tensor& d_x) {
    const VisionConfig& v = vlm_.config().vision;
    const std::int64_t n = x.size(0), tokens = n / (v.merge * v.merge);
    const Tensor merged = a.merged.slice(0, tokens), fc1 = a.fc1.slice(0, tokens), act = a.act.slice(0, tokens);
    const Tensor d_act = d_merged_act_.slice(0, tokens), d_merged = d_merged_.slice(0, tokens);
    affine_backward(weights, gradients, m.fc2, act, d_out, d_act);
    ops::gelu_erf_backward(fc1.f32(), d_act.f32(), d_act.f32(), d_act.elements());
    affine_backward(weights, gradients, m.fc1, merged, d_act, d_merged);
    const Shape rows = norm_after_merge ? Shape{tokens, v.merged()} : Shape{n, v.hidden};
    layer_norm_backward(weights, gradients, m.norm, x.reshaped(rows), a.mean, a.inverse, d_merged.reshaped(rows), d_x.reshaped(rows));
}

void TrainingPass::forward_vision(const ParameterStore& weights) {
    const VisionConfig& v = vlm_.config().vision;
    check_patches(v, pixel_values_, grids_, max_patches_);
    const std::int64_t n = pixel_values_.size(0), tokens = n / (v.merge * v.merge);
    const Tensor patch_weight = weights[vlm_.patch.weight].reshaped({v.hidden, v.patch_elements()});
    Tensor x = v.depth > 0 ? vision_[0].x.slice(0, n) : patches_.slice(0, n);
    pixel_values_ = bring(vlm_.device(), pixel_values_, pixels_there_);
    ops::linear(pixel_values_, patch_weight, weights[vlm_.patch.bias], x);
    add_blend(position_blend(v, grids_), weights[vlm_.position_embedding], x, corners_there_, shares_there_);
    fill_tables(n, vision_cosine_, vision_sine_, host_cosine_, host_sine_,
                [&](float* cosine, float* sine) { vision_rotation(v, grids_, cosine, sine); });
    for (std::size_t b = 0; b < vision_.size(); ++b) {
        const VisionBlock& p = vlm_.blocks[b];
        const VisionActivations& a = vision_[b];
        const Tensor y1 = a.y1.slice(0, n), qkv = a.qkv.slice(0, n), attended = a.attended.slice(0, n), middle = a.middle.slice(0, n);
        const Tensor y2 = a.y2.slice(0, n), fc1 = a.fc1.slice(0, n), act = a.act.slice(0, n);
        const Tensor out = b + 1 < vision_.size() ? vision_[b + 1].x.slice(0, n) : patches_.slice(0, n);
        acquire(weights, p.qkv.weight);
        layer_norm(weights, p.norm1, x, y1, a.mean1, a.inverse1);
        affine(weights, p.qkv, y1, qkv);
        for (std::int64_t part = 0; part < 2; ++part)
            ops::rope_half(n, v.heads, v.head_dim(), 3 * v.hidden, vision_cosine_.f32(), vision_sine_.f32(),
                           qkv.f32() + part * v.hidden);
        std::int64_t first = 0;
        for (const GridThw& grid : grids_) {  // attention never crosses pictures
            const ops::AttentionShape s = picture_attention(v, grid);
            const float* base = qkv.f32() + first * 3 * v.hidden;
            ops::attention(s, base, {}, {base + v.hidden, base + 2 * v.hidden}, attended.f32() + first * v.hidden,
                           a.log_sum_exp.f32() + first * v.heads, attention_workspace_);
            first += s.queries;
        }
        affine(weights, p.proj, attended, middle);
        ops::add(x.f32(), middle.f32(), middle.elements());
        layer_norm(weights, p.norm2, middle, y2, a.mean2, a.inverse2);
        affine(weights, p.fc1, y2, fc1);
        ops::gelu_tanh(fc1.f32(), act.f32(), act.elements());
        affine(weights, p.fc2, act, out);
        release(weights, p.qkv.weight);
        ops::add(middle.f32(), out.f32(), out.elements());
        x = out;
        for (std::size_t i = 0; i < v.deepstack.size(); ++i)
            if (v.deepstack[i] == static_cast<std::int64_t>(b))
                forward_merger(weights, vlm_.deepstack_mergers[i], true, deepstack_mergers_[i], x, deepstack_[i].slice(0, tokens));
    }
    forward_merger(weights, vlm_.merger, false, merger_, x, picture_tokens_.slice(0, tokens));
}

void TrainingPass::backward_vision(const ParameterStore& weights, const ParameterStore& gradients) {
    const VisionConfig& v = vlm_.config().vision;
    const std::int64_t n = pixel_values_.size(0), tokens = n / (v.merge * v.merge);
    const Tensor d_x = d_patches_.slice(0, n), d_y = d_vision_y_.slice(0, n), d_qkv = d_qkv_.slice(0, n);
    const Tensor d_act = d_vision_act_.slice(0, n), d_branch = d_branch_.slice(0, n), last = patches_.slice(0, n);
    clear(d_x);
    backward_merger(weights, gradients, vlm_.merger, false, merger_, last, d_picture_tokens_.slice(0, tokens), d_x);
    for (std::size_t b = vision_.size(); b-- > 0;) {
        const VisionBlock& p = vlm_.blocks[b];
        const VisionActivations& a = vision_[b];
        const Tensor out = b + 1 < vision_.size() ? vision_[b + 1].x.slice(0, n) : last;
        for (std::size_t i = 0; i < v.deepstack.size(); ++i)
            if (v.deepstack[i] == static_cast<std::int64_t>(b))
                backward_merger(weights, gradients, vlm_.deepstack_mergers[i], true, deepstack_mergers_[i], out,
                                d_deepstack_[i].slice(0, tokens), d_x);
        const Tensor qkv = a.qkv.slice(0, n), attended = a.attended.slice(0, n), fc1 = a.fc1.slice(0, n);
        acquire(weights, p.qkv.weight);
        acquire(gradients, p.qkv.weight);
        transfer(d_x, d_branch);  // products may round what they take, the sum of all branches stays as it is
        affine_backward(weights, gradients, p.fc2, a.act.slice(0, n), d_branch, d_act);
        ops::gelu_tanh_backward(fc1.f32(), d_act.f32(), d_act.f32(), d_act.elements());
        affine_backward(weights, gradients, p.fc1, a.y2.slice(0, n), d_act, d_y);
        layer_norm_backward(weights, gradients, p.norm2, a.middle.slice(0, n), a.mean2, a.inverse2, d_y, d_x);
        transfer(d_x, d_branch);
        affine_backward(weights, gradients, p.proj, attended, d_branch, d_y);
        std::int64_t first = 0;
        for (const GridThw& grid : grids_) {
            const ops::AttentionShape s = picture_attention(v, grid);
            const float* base = qkv.f32() + first * 3 * v.hidden;
            float* d_base = d_qkv.f32() + first * 3 * v.hidden;
            ops::attention_backward(s, base, {}, {base + v.hidden, base + 2 * v.hidden}, attended.f32() + first * v.hidden,
                                    a.log_sum_exp.f32() + first * v.heads, d_y.f32() + first * v.hidden, d_base, {},
                                    {d_base + v.hidden, d_base + 2 * v.hidden}, attention_workspace_);
            first += s.queries;
        }
        for (std::int64_t part = 0; part < 2; ++part)
            ops::rope_half_backward(n, v.heads, v.head_dim(), 3 * v.hidden, vision_cosine_.f32(), vision_sine_.f32(),
                                    d_qkv.f32() + part * v.hidden);
        affine_backward(weights, gradients, p.qkv, a.y1.slice(0, n), d_qkv, d_y);
        layer_norm_backward(weights, gradients, p.norm1, a.x.slice(0, n), a.mean1, a.inverse1, d_y, d_x);
        release(gradients, p.qkv.weight);
        release(weights, p.qkv.weight);
    }
    if (!gradients.has_values()) return;  // no adapter stands before the blocks
    const Tensor d_patch = gradients[vlm_.patch.weight].reshaped({v.hidden, v.patch_elements()});
    ops::linear_backward_weight(d_x, pixel_values_, d_patch, gradients[vlm_.patch.bias]);
    for (const PositionBlend& blend : table_blends(v.positions, position_blend(v, grids_)))
        add_blend(blend, d_x, gradients[vlm_.position_embedding], corners_there_, shares_there_);
}

void TrainingPass::forward_text(const ParameterStore& weights) {
    const TextConfig& t = vlm_.config().text;
    const std::int64_t n = tokens_, q_width = t.heads * t.head_dim, kv_width = t.kv_heads * t.head_dim;
    const ops::AttentionShape s = text_attention(t, limits_);
    for (std::size_t l = 0; l < text_.size(); ++l) {
        const TextLayer& p = vlm_.layers[l];
        const TextActivations& a = text_[l];
        const Tensor x = a.x.slice(0, n), y1 = a.y1.slice(0, n), q_in = a.q_in.slice(0, n), k_in = a.k_in.slice(0, n);
        const Tensor q = a.q.slice(0, n), k = a.k.slice(0, n), v = a.v.slice(0, n), attended = a.attended.slice(0, n);
        const Tensor middle = a.middle.slice(0, n), y2 = a.y2.slice(0, n), gate = a.gate.slice(0, n), up = a.up.slice(0, n);
        const Tensor act = a.act.slice(0, n), out = (l + 1 < text_.size() ? text_[l + 1].x : states_).slice(0, n);
        acquire(weights, p.q);
        ops::rms_norm({n, t.hidden, 0, 0, t.eps, 0.0f}, x.f32(), weights[p.input_norm].f32(), y1.f32(), a.inverse1.f32());
        nn::project(weights, p.q, y1, q_in);
        nn::project(weights, p.k, y1, k_in);
        nn::project(weights, p.v, y1, v);
        ops::rms_norm({n * t.heads, t.head_dim, 0, 0, t.eps, 0.0f}, q_in.f32(), weights[p.q_norm].f32(), q.f32(), a.q_inverse.f32());
        ops::rms_norm({n * t.kv_heads, t.head_dim, 0, 0, t.eps, 0.0f}, k_in.f32(), weights[p.k_norm].f32(), k.f32(), a.k_inverse.f32());
        ops::rope_half(n, t.heads, t.head_dim, q_width, cosine_.f32(), sine_.f32(), q.f32());
        ops::rope_half(n, t.kv_heads, t.head_dim, kv_width, cosine_.f32(), sine_.f32(), k.f32());
        ops::attention(s, q.f32(), {}, {k.f32(), v.f32()}, attended.f32(), a.log_sum_exp.f32(), attention_workspace_);
        nn::project(weights, p.out, attended, middle);
        ops::add(x.f32(), middle.f32(), middle.elements());
        ops::rms_norm({n, t.hidden, 0, 0, t.eps, 0.0f}, middle.f32(), weights[p.post_norm].f32(), y2.f32(), a.inverse2.f32());
        nn::project(weights, p.gate, y2, gate);
        nn::project(weights, p.up, y2, up);
        ops::swiglu(n, t.intermediate, gate.f32(), up.f32(), t.intermediate, act.f32());
        nn::project(weights, p.down, act, out);
        release(weights, p.q);
        ops::add(middle.f32(), out.f32(), out.elements());
        if (l < deepstack_.size() && image_tokens() > 0)  // features of vision blocks are added at the pictures' tokens after the layer
            ops::add_to_rows(image_tokens(), t.hidden, image_tokens_at_.as<std::int32_t>(), deepstack_[l].f32(), out.f32());
    }
}

void TrainingPass::backward_text(const ParameterStore& weights, const ParameterStore& gradients, const Tensor& d_x) {
    const TextConfig& t = vlm_.config().text;
    const std::int64_t n = tokens_, q_width = t.heads * t.head_dim, kv_width = t.kv_heads * t.head_dim;
    const ops::AttentionShape s = text_attention(t, limits_);
    const Tensor d_y = d_y_.slice(0, n), d_q = d_q_.slice(0, n), d_k = d_kv_.slice(0, n), d_v = d_kv_.slice(n, 2 * n);
    const Tensor d_attended = d_attended_.slice(0, n), d_gate = d_gate_up_.slice(0, n), d_up = d_gate_up_.slice(n, 2 * n);
    const Tensor d_act = d_act_.slice(0, n);
    for (std::size_t l = text_.size(); l-- > 0;) {
        const TextLayer& p = vlm_.layers[l];
        const TextActivations& a = text_[l];
        const Tensor y1 = a.y1.slice(0, n), y2 = a.y2.slice(0, n), act = a.act.slice(0, n), attended = a.attended.slice(0, n);
        if (l < d_deepstack_.size() && image_tokens() > 0)
            ops::gather_rows(image_tokens(), t.hidden, image_tokens_at_.as<std::int32_t>(), d_x.f32(), d_x.f32(), d_deepstack_[l].f32());
        acquire(weights, p.q);
        acquire(gradients, p.q);
        transfer(d_x, d_y);  // products may round what they take, the sum of all branches stays as it is
        nn::project_backward(weights, gradients, p.down, act, d_y, d_act);
        ops::swiglu_backward(n, t.intermediate, a.gate.f32(), a.up.f32(), t.intermediate, d_act.f32(), d_gate.f32(), d_up.f32());
        nn::project_backward(weights, gradients, p.gate, y2, d_gate, d_y);
        nn::project_backward(weights, gradients, p.up, y2, d_up, d_y, true);
        ops::rms_norm_backward({n, t.hidden, 0, 0, t.eps, 0.0f}, a.middle.f32(), weights[p.post_norm].f32(), a.inverse2.f32(),
                               d_y.f32(), d_y.f32(), nn::vector_gradient(gradients, p.post_norm));
        ops::add(d_y.f32(), d_x.f32(), d_x.elements());

        transfer(d_x, d_y);
        nn::project_backward(weights, gradients, p.out, attended, d_y, d_attended);
        ops::attention_backward(s, a.q.f32(), {}, {a.k.f32(), a.v.f32()}, attended.f32(), a.log_sum_exp.f32(), d_attended.f32(),
                                d_q.f32(), {}, {d_k.f32(), d_v.f32()}, attention_workspace_);
        ops::rope_half_backward(n, t.heads, t.head_dim, q_width, cosine_.f32(), sine_.f32(), d_q.f32());
        ops::rope_half_backward(n, t.kv_heads, t.head_dim, kv_width, cosine_.f32(), sine_.f32(), d_k.f32());
        ops::rms_norm_backward({n * t.heads, t.head_dim, 0, 0, t.eps, 0.0f}, a.q_in.f32(), weights[p.q_norm].f32(),
                               a.q_inverse.f32(), d_q.f32(), d_q.f32(), nn::vector_gradient(gradients, p.q_norm));
        ops::rms_norm_backward({n * t.kv_heads, t.head_dim, 0, 0, t.eps, 0.0f}, a.k_in.f32(), weights[p.k_norm].f32(),
                               a.k_inverse.f32(), d_k.f32(), d_k.f32(), nn::vector_gradient(gradients, p.k_norm));
        nn::project_backward(weights, gradients, p.q, y1, d_q, d_y);
        nn::project_backward(weights, gradients, p.k, y1, d_k, d_y, true);
        nn::project_backward(weights, gradients, p.v, y1, d_v, d_y, true);
        ops::rms_norm_backward({n, t.hidden, 0, 0, t.eps, 0.0f}, a.x.f32(), weights[p.input_norm].f32(), a.inverse1.f32(),
                               d_y.f32(), d_y.f32(), nn::vector_gradient(gradients, p.input_norm));
        release(gradients, p.q);
        release(weights, p.q);
        ops::add(d_y.f32(), d_x.f32(), d_x.elements());
    }
}

Tensor TrainingPass::forward(const ParameterStore& weights, std::span<const std::int32_t> ids, const Tensor& pixel_values,
                             std::span<const GridThw> grids) {
    const DeviceScope scope(vlm_.device());
    const Config& c = vlm_.config();
    const auto n = static_cast<std::int64_t>(ids.size());
    ATELIER_CHECK(n >= 1 && n <= max_tokens_, "a sequence of {} tokens, planned for {}", n, max_tokens_);
    tokens_ = n;
    ids_ = ids;
    grids_ = grids;
    pixel_values_ = pixel_values;
    const Positions positions = make_positions(c, ids, grids);
    fill_tables(n, cosine_, sine_, host_cosine_, host_sine_,
                [&](float* cosine, float* sine) { text_rotation(c.text, positions.token, cosine, sine); });
    limits_.clear();
    for (std::int64_t i = 0; i < n; ++i) limits_.push_back(static_cast<std::int32_t>(i + 1));
    image_rows_.clear();
    logit_rows_.clear();
    if (!grids.empty()) forward_vision(weights);
    const Tensor x = (text_.empty() ? states_ : text_[0].x).slice(0, n);
    std::vector<std::int32_t> rows(ids.begin(), ids.end());
    for (std::size_t i = 0; i < rows.size(); ++i) {
        ATELIER_CHECK_INPUT(rows[i] >= 0 && rows[i] < c.text.vocabulary, "token {} of a vocabulary of {}", rows[i], c.text.vocabulary);
        if (rows[i] != c.image_token) continue;
        rows[i] = -1 - static_cast<std::int32_t>(image_rows_.size());
        image_rows_.push_back(static_cast<std::int32_t>(i));
    }
    image_tokens_at_ = bring(vlm_.device(), list(image_rows_), image_rows_there_);
    const Tensor from = bring(vlm_.device(), list(rows), rows_there_);
    ops::gather_rows(n, c.text.hidden, from.as<std::int32_t>(), weights.numbers(vlm_.embedding).f32(), picture_tokens_.f32(), x.f32());
    forward_text(weights);
    return states_.slice(0, n);
}

void TrainingPass::logits(const ParameterStore& weights, std::span<const std::int64_t> rows, const Tensor& out) {
    const DeviceScope scope(vlm_.device());
    const TextConfig& t = vlm_.config().text;
    const auto n = static_cast<std::int64_t>(rows.size());
    ATELIER_CHECK(n >= 1 && n <= max_rows_, "logits of {} rows, planned for {}", n, max_rows_);
    logit_rows_.assign(rows.begin(), rows.end());
    for (const std::int32_t row : logit_rows_) ATELIER_CHECK(row >= 0 && row < tokens_, "logits of token {} of {}", row, tokens_);
    const Tensor in = logit_in_.slice(0, n), normed = logit_normed_.slice(0, n);
    const Tensor from = bring(vlm_.device(), list(logit_rows_), rows_there_);
    ops::gather_rows(n, t.hidden, from.as<std::int32_t>(), states_.f32(), states_.f32(), in.f32());
    ops::rms_norm({n, t.hidden, 0, 0, t.eps, 0.0f}, in.f32(), weights[vlm_.final_norm].f32(), normed.f32(), logit_inverse_.f32());
    const Tensor there_out = there(vlm_.device(), out, logits_there_);
    acquire(weights, vlm_.head);
    nn::project(weights, vlm_.head, normed, there_out);
    release(weights, vlm_.head);
    if (there_out.raw() != out.raw()) transfer(there_out, out);
}

void TrainingPass::backward(const ParameterStore& weights, const ParameterStore& gradients, const Tensor& d_logits,
                            const Tensor& d_states) {
    const DeviceScope scope(vlm_.device());
    const TextConfig& t = vlm_.config().text;
    const Tensor d_x = d_states_.slice(0, tokens_);
    if (d_states.empty())
        clear(d_x);
    else
        transfer(d_states, d_x);
    if (!d_logits.empty()) {
        const auto n = static_cast<std::int64_t>(logit_rows_.size());
        ATELIER_CHECK(d_logits.size(0) == n, "gradients of {} rows of logits, {} were made", d_logits.size(0), n);
        const Tensor d_normed = d_logit_.slice(0, n);
        acquire(weights, vlm_.head);
        acquire(gradients, vlm_.head);
        nn::project_backward(weights, gradients, vlm_.head, logit_normed_.slice(0, n), bring(vlm_.device(), d_logits, logits_there_),
                             d_normed);
        release(gradients, vlm_.head);
        release(weights, vlm_.head);
        ops::rms_norm_backward({n, t.hidden, 0, 0, t.eps, 0.0f}, logit_in_.f32(), weights[vlm_.final_norm].f32(),
                               logit_inverse_.f32(), d_normed.f32(), d_normed.f32(), nn::vector_gradient(gradients, vlm_.final_norm));
        const Tensor to = bring(vlm_.device(), list(logit_rows_), rows_there_);
        ops::add_to_rows(n, t.hidden, to.as<std::int32_t>(), d_normed.f32(), d_x.f32());
    }
    backward_text(weights, gradients, d_x);
    if (gradients.has_values()) backward_embedding(d_x, gradients[vlm_.embedding]);
    if (grids_.empty()) return;
    ops::gather_rows(image_tokens(), t.hidden, image_tokens_at_.as<std::int32_t>(), d_x.f32(), d_x.f32(), d_picture_tokens_.f32());
    backward_vision(weights, gradients);
}

void TrainingPass::backward_embedding(const Tensor& d_x, const Tensor& d_table) const {
    std::vector<std::pair<std::int32_t, std::int32_t>> entries;
    for (std::size_t i = 0; i < ids_.size(); ++i)
        if (ids_[i] != vlm_.config().image_token) entries.emplace_back(static_cast<std::int32_t>(i), ids_[i]);
    const Rounds rounds = rounds_of(entries);
    const Tensor tokens = bring(vlm_.device(), list(rounds.entry), tokens_there_), rows = bring(vlm_.device(), list(rounds.row), rows_there_);
    std::int64_t begin = 0;
    for (const std::int64_t end : rounds.end) {
        ops::gather_rows(end - begin, d_x.size(1), tokens.as<std::int32_t>() + begin, d_x.f32(), d_x.f32(), d_y_.f32());
        ops::add_to_rows(end - begin, d_x.size(1), rows.as<std::int32_t>() + begin, d_y_.f32(), d_table.f32());
        begin = end;
    }
}

double cross_entropy(std::span<const std::int32_t> targets, std::int64_t count, const Tensor& logits) {
    const std::int64_t vocabulary = logits.size(1);
    ATELIER_CHECK(static_cast<std::int64_t>(targets.size()) == logits.size(0), "{} targets for {} rows of logits", targets.size(),
                  logits.size(0));
    std::vector<double> losses(targets.size());
    parallel_for(logits.size(0), 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t r = begin; r < end; ++r) {
            float* row = logits.f32() + r * vocabulary;
            const std::int32_t target = targets[static_cast<std::size_t>(r)];
            ATELIER_CHECK_INPUT(target >= 0 && target < vocabulary, "target token {} of a vocabulary of {}", target, vocabulary);
            const double top = *std::max_element(row, row + vocabulary);
            double sum = 0;
            for (std::int64_t j = 0; j < vocabulary; ++j) sum += std::exp(row[j] - top);
            losses[static_cast<std::size_t>(r)] = std::log(sum) + top - row[target];
            for (std::int64_t j = 0; j < vocabulary; ++j)
                row[j] = static_cast<float>((std::exp(row[j] - top) / sum - (j == target ? 1 : 0)) / static_cast<double>(count));
        }
    });
    double loss = 0;
    for (double l : losses) loss += l;
    return loss / static_cast<double>(count);
}

}  // namespace atelier::vlm
