#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/device.hpp"
#include "model/vlm/tables.hpp"
#include "model/vlm/vlm.hpp"
#include "ops/activation.hpp"
#include "ops/attention.hpp"
#include "ops/linear.hpp"
#include "ops/norm.hpp"
#include "ops/rope.hpp"
#include "ops/rows.hpp"

namespace atelier::vlm {
namespace {

void apply(const nn::ParameterStore& weights, const Affine& map, const Tensor& x, const Tensor& y) {
    ops::linear(x, weights[map.weight], map.bias < 0 ? Tensor() : weights[map.bias], y);
}

void norm(const nn::ParameterStore& weights, const Affine& n, const Tensor& x, const Tensor& y) {
    ops::layer_norm({x.size(0), x.size(1), vision_eps}, x.f32(), weights[n.weight].f32(), weights[n.bias].f32(), y.f32(),
                    nullptr, nullptr);
}

}  // namespace

Session::Session(const Vlm& vlm, std::int64_t max_tokens, std::int64_t max_patches, Arena& arena)
    : vlm_(vlm), max_tokens_(max_tokens), max_patches_(max_patches) {
    const Device device = vlm.device();
    const DeviceScope scope(device);
    const TextConfig& t = vlm.config().text;
    const VisionConfig& v = vlm.config().vision;
    const std::int64_t q_width = t.heads * t.head_dim, kv_width = t.kv_heads * t.head_dim;
    const auto take = [&](Shape shape) { return arena.take_f32(shape, device); };
    hidden_ = take({max_tokens, t.hidden});
    normed_ = take({max_tokens, t.hidden});
    q_ = take({max_tokens, q_width});
    attended_ = take({max_tokens, q_width});
    gate_up_ = take({2 * max_tokens, t.intermediate});
    act_ = take({max_tokens, t.intermediate});
    cosine_ = take({max_tokens, t.head_dim / 2});
    sine_ = take({max_tokens, t.head_dim / 2});
    // Keys, then values, of a layer: two blocks of [max_tokens, kv_width].
    for (std::int64_t i = 0; i < t.layers; ++i) keys_.push_back(take({2 * max_tokens, kv_width}));
    ops::AttentionShape text, picture;
    text.queries = text.own_keys = max_tokens;
    text.heads = t.heads, text.kv_heads = t.kv_heads, text.head_dim = t.head_dim;
    picture.queries = picture.own_keys = max_patches;
    picture.heads = picture.kv_heads = v.heads, picture.head_dim = v.head_dim();
    attention_workspace_ = take({std::max(ops::attention_workspace(text), ops::attention_workspace(picture))});
    if (device != Device::cpu) {
        embedding_rows_ = arena.take(DType::i32, {max_tokens}, device);
        const std::int64_t most = std::max(cosine_.elements(), max_patches * v.head_dim() / 2);
        host_cosine_ = arena.take_f32({most});
        host_sine_ = arena.take_f32({most});
    }
    if (max_patches == 0) return;
    const std::int64_t tokens = max_patches / (v.merge * v.merge);
    if (device != Device::cpu) {
        pixels_ = take({max_patches, v.patch_elements()});
        corners_ = arena.take(DType::i32, {max_patches, 4}, device);
        shares_ = take({max_patches, 4});
        image_rows_there_ = arena.take(DType::i32, {tokens}, device);
    }
    patches_ = take({max_patches, v.hidden});
    vision_normed_ = take({max_patches, v.hidden});
    vision_qkv_ = take({max_patches, 3 * v.hidden});
    vision_attended_ = take({max_patches, v.hidden});
    vision_act_ = take({max_patches, std::max(v.intermediate, v.hidden)});
    vision_cosine_ = take({max_patches, v.head_dim() / 2});
    vision_sine_ = take({max_patches, v.head_dim() / 2});
    merged_ = take({tokens, v.merged()});
    merged_act_ = take({tokens, v.merged()});
    picture_tokens_ = take({tokens, v.out_hidden});
    for (std::size_t i = 0; i < v.deepstack.size(); ++i) deepstack_.push_back(take({tokens, v.out_hidden}));
}

void Session::run_merger(const nn::ParameterStore& weights, const Merger& m, bool norm_after_merge, const Tensor& x,
                         const Tensor& out) {
    const VisionConfig& v = vlm_.config().vision;
    const std::int64_t tokens = x.size(0) / (v.merge * v.merge);
    const Tensor merged = merged_.slice(0, tokens), act = merged_act_.slice(0, tokens);
    // Merge order makes 2 x 2 patches neighbours in memory: merging is a change of shape.
    if (norm_after_merge)
        norm(weights, m.norm, x.reshaped({tokens, v.merged()}), merged);
    else
        norm(weights, m.norm, x, merged.reshaped({x.size(0), v.hidden}));
    apply(weights, m.fc1, merged, act);
    ops::gelu_erf(act.f32(), act.f32(), act.elements());
    apply(weights, m.fc2, act, out);
}

void Session::run_vision(const nn::ParameterStore& weights, const Tensor& pixel_values, std::span<const GridThw> grids,
                         const Observer& observe) {
    const VisionConfig& v = vlm_.config().vision;
    const std::int64_t n = pixel_values.size(0), tokens = n / (v.merge * v.merge);
    check_patches(v, pixel_values, grids, max_patches_);
    const auto show = [&](const std::string& name, const Tensor& value) {
        if (observe) observe("vision." + name, value);
    };
    const Tensor x = patches_.slice(0, n), y = vision_normed_.slice(0, n), qkv = vision_qkv_.slice(0, n);
    const Tensor attended = vision_attended_.slice(0, n);
    const Tensor weight = weights[vlm_.patch.weight].reshaped({v.hidden, v.patch_elements()});
    ops::linear(bring(vlm_.device(), pixel_values, pixels_), weight, weights[vlm_.patch.bias], x);
    show("patch_embed", x);

    add_blend(position_blend(v, grids), weights[vlm_.position_embedding], x, corners_, shares_);
    fill_tables(n, vision_cosine_, vision_sine_, host_cosine_, host_sine_,
                [&](float* cosine, float* sine) { vision_rotation(v, grids, cosine, sine); });
    show("block_in", x);

    for (std::int64_t b = 0; b < v.depth; ++b) {
        const VisionBlock& p = vlm_.blocks[static_cast<std::size_t>(b)];
        weights.acquire(b);
        norm(weights, p.norm1, x, y);
        apply(weights, p.qkv, y, qkv);
        float* q = qkv.f32();
        for (std::int64_t part = 0; part < 2; ++part)
            ops::rope_half(n, v.heads, v.head_dim(), 3 * v.hidden, vision_cosine_.f32(), vision_sine_.f32(), q + part * v.hidden);
        std::int64_t first = 0;
        for (const GridThw& grid : grids) {  // attention never crosses pictures
            ops::AttentionShape s;
            s.queries = s.own_keys = grid[1] * grid[2];
            s.heads = s.kv_heads = v.heads;
            s.head_dim = v.head_dim();
            s.q_stride = s.own_stride = 3 * v.hidden;
            s.out_stride = v.hidden;
            s.scale = 1.0f / std::sqrt(static_cast<float>(v.head_dim()));
            const float* base = q + first * 3 * v.hidden;
            ops::attention(s, base, {}, {base + v.hidden, base + 2 * v.hidden}, attended.f32() + first * v.hidden, nullptr,
                           attention_workspace_);
            first += s.queries;
        }
        apply(weights, p.proj, attended, y);
        ops::add(y.f32(), x.f32(), x.elements());
        norm(weights, p.norm2, x, y);
        const Tensor act(vision_act_.raw(), DType::f32, {n, v.intermediate}, vlm_.device());
        apply(weights, p.fc1, y, act);
        ops::gelu_tanh(act.f32(), act.f32(), act.elements());
        apply(weights, p.fc2, act, y);
        weights.release(b);
        ops::add(y.f32(), x.f32(), x.elements());
        show(fmt::format("block.{}", b), x);
        for (std::size_t i = 0; i < v.deepstack.size(); ++i)
            if (v.deepstack[i] == b) {
                run_merger(weights, vlm_.deepstack_mergers[i], true, x, deepstack_[i].slice(0, tokens));
                show(fmt::format("deepstack.{}", i), deepstack_[i].slice(0, tokens));
            }
    }
    run_merger(weights, vlm_.merger, false, x, picture_tokens_.slice(0, tokens));
    show("merger", picture_tokens_.slice(0, tokens));
}

Tensor Session::encode(const nn::ParameterStore& weights, std::span<const std::int32_t> ids, const Tensor& pixel_values,
                       std::span<const GridThw> grids, const Observer& observe) {
    const DeviceScope scope(vlm_.device());
    const Config& c = vlm_.config();
    const auto n = static_cast<std::int64_t>(ids.size());
    ATELIER_CHECK(n >= 1 && n <= max_tokens_, "a prompt of {} tokens, planned for {}", n, max_tokens_);
    const Positions positions = make_positions(c, ids, grids);
    rotate(positions.token);
    length_ = 0;
    next_position_ = positions.next;
    if (!grids.empty()) run_vision(weights, pixel_values, grids, observe);
    embed(weights, ids);
    if (observe) observe("text.inputs_embeds", hidden_.slice(0, n));
    const Tensor result = run_text(weights, n, observe);
    image_rows_.clear();
    return result;
}

void Session::rotate(std::span<const std::array<std::int64_t, 3>> positions) {
    fill_tables(static_cast<std::int64_t>(positions.size()), cosine_, sine_, host_cosine_, host_sine_,
                [&](float* cosine, float* sine) { text_rotation(vlm_.config().text, positions, cosine, sine); });
}

void Session::embed(const nn::ParameterStore& weights, std::span<const std::int32_t> ids) {
    const Config& c = vlm_.config();
    const auto n = static_cast<std::int64_t>(ids.size());
    std::vector<std::int32_t> rows(ids.begin(), ids.end());
    image_rows_.clear();
    for (std::size_t i = 0; i < rows.size(); ++i) {
        ATELIER_CHECK_INPUT(rows[i] >= 0 && rows[i] < c.text.vocabulary, "token {} of a vocabulary of {}", rows[i], c.text.vocabulary);
        if (rows[i] != c.image_token) continue;
        rows[i] = -1 - static_cast<std::int32_t>(image_rows_.size());
        image_rows_.push_back(static_cast<std::int32_t>(i));
    }
    const Tensor source = bring(vlm_.device(), Tensor::of(rows.data(), {n}), embedding_rows_);
    ops::gather_rows(n, c.text.hidden, source.as<std::int32_t>(), weights.numbers(vlm_.embedding).f32(), picture_tokens_.f32(), hidden_.f32());
}

Tensor Session::extend(const nn::ParameterStore& weights, std::span<const std::int32_t> ids) {
    const DeviceScope scope(vlm_.device());
    const auto n = static_cast<std::int64_t>(ids.size());
    ATELIER_CHECK(length_ > 0 && n >= 1 && length_ + n <= max_tokens_, "{} tokens after {} of at most {}", n, length_,
                  max_tokens_);
    std::vector<std::array<std::int64_t, 3>> positions;
    for (const std::int32_t id : ids) {
        ATELIER_CHECK(id != vlm_.config().image_token, "a picture after the prompt");
        positions.push_back({next_position_, next_position_, next_position_});
        ++next_position_;
    }
    embed(weights, ids);
    rotate(positions);
    return run_text(weights, n, {});
}

void Session::rewind(std::int64_t length, std::int64_t position) {
    ATELIER_CHECK(length >= 1 && length <= length_ && next_position_ - position == length_ - length,
                  "back to {} of {} tokens, position {} of {}", length, length_, position, next_position_);
    length_ = length;
    next_position_ = position;
}

Tensor Session::run_text(const nn::ParameterStore& weights, std::int64_t n, const Observer& observe) {
    const TextConfig& t = vlm_.config().text;
    const std::int64_t q_width = t.heads * t.head_dim, kv_width = t.kv_heads * t.head_dim;
    const Tensor x = hidden_.slice(0, n), y = normed_.slice(0, n), q = q_.slice(0, n), attended = attended_.slice(0, n);
    std::vector<std::int32_t> limits(static_cast<std::size_t>(n));
    for (std::int64_t i = 0; i < n; ++i) limits[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i + 1);
    ops::AttentionShape s;
    s.queries = s.own_keys = n;
    s.shared_keys = length_;  // what came before
    s.heads = t.heads;
    s.kv_heads = t.kv_heads;
    s.head_dim = t.head_dim;
    s.q_stride = s.out_stride = q_width;
    s.own_stride = s.shared_stride = kv_width;
    s.scale = 1.0f / std::sqrt(static_cast<float>(t.head_dim));
    s.own_limit = limits.data();
    const auto image_tokens = static_cast<std::int64_t>(image_rows_.size());
    const Tensor image_rows = bring(vlm_.device(), Tensor::of(image_rows_.data(), {image_tokens}), image_rows_there_);
    for (std::size_t l = 0; l < vlm_.layers.size(); ++l) {
        const TextLayer& p = vlm_.layers[l];
        const std::int64_t block = vlm_.config().vision.depth + static_cast<std::int64_t>(l);
        weights.acquire(block);
        const Tensor all_keys = keys_[l].slice(0, max_tokens_), all_values = keys_[l].slice(max_tokens_, 2 * max_tokens_);
        const Tensor k = all_keys.slice(length_, length_ + n), v = all_values.slice(length_, length_ + n);
        ops::rms_norm({n, t.hidden, 0, 0, t.eps, 0.0f}, x.f32(), weights[p.input_norm].f32(), y.f32(), nullptr);
        ops::linear(y, weights[p.q], {}, q);
        ops::linear(y, weights[p.k], {}, k);
        ops::linear(y, weights[p.v], {}, v);
        ops::rms_norm({n * t.heads, t.head_dim, 0, 0, t.eps, 0.0f}, q.f32(), weights[p.q_norm].f32(), q.f32(), nullptr);
        ops::rms_norm({n * t.kv_heads, t.head_dim, 0, 0, t.eps, 0.0f}, k.f32(), weights[p.k_norm].f32(), k.f32(), nullptr);
        ops::rope_half(n, t.heads, t.head_dim, q_width, cosine_.f32(), sine_.f32(), q.f32());
        ops::rope_half(n, t.kv_heads, t.head_dim, kv_width, cosine_.f32(), sine_.f32(), k.f32());
        ops::attention(s, q.f32(), {all_keys.f32(), all_values.f32()}, {k.f32(), v.f32()}, attended.f32(), nullptr,
                       attention_workspace_);
        ops::linear(attended, weights[p.out], {}, y);
        ops::add(y.f32(), x.f32(), x.elements());
        ops::rms_norm({n, t.hidden, 0, 0, t.eps, 0.0f}, x.f32(), weights[p.post_norm].f32(), y.f32(), nullptr);
        const Tensor gate = gate_up_.slice(0, n), up = gate_up_.slice(n, 2 * n), act = act_.slice(0, n);
        ops::linear(y, weights[p.gate], {}, gate);
        ops::linear(y, weights[p.up], {}, up);
        ops::swiglu(n, t.intermediate, gate.f32(), up.f32(), t.intermediate, act.f32());
        ops::linear(act, weights[p.down], {}, y);
        weights.release(block);
        ops::add(y.f32(), x.f32(), x.elements());
        if (observe) observe(fmt::format("text.layer.{}", l), x);
        if (l < deepstack_.size() && image_tokens > 0)  // features of vision blocks are added at the pictures' tokens after the layer
            ops::add_to_rows(image_tokens, t.hidden, image_rows.as<std::int32_t>(), deepstack_[l].f32(), x.f32());
    }
    length_ += n;
    return x;
}

void Session::logits(const nn::ParameterStore& weights, const Tensor& states, const Tensor& out) {
    const DeviceScope scope(vlm_.device());
    const TextConfig& t = vlm_.config().text;
    const Tensor y = normed_.slice(0, states.size(0));
    ops::rms_norm({states.size(0), t.hidden, 0, 0, t.eps, 0.0f}, states.f32(), weights[vlm_.final_norm].f32(), y.f32(), nullptr);
    ops::linear(y, weights[vlm_.head], {}, out);
}

}  // namespace atelier::vlm
