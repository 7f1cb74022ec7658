#include "model/vlm/decoder.hpp"

#include <algorithm>
#include <cmath>

#include "core/device.hpp"
#include "model/vlm/tables.hpp"
#include "ops/activation.hpp"
#include "ops/decode.hpp"
#include "ops/norm.hpp"
#include "ops/rope.hpp"
#include "ops/rows.hpp"

namespace atelier::vlm {

Decoder::Decoder(const Vlm& vlm, const DecoderSize& size, Arena& arena)
    : vlm_(vlm),
      size_(size),
      kv_width_(vlm.config().text.kv_heads * vlm.config().text.head_dim),
      prefix_length_(static_cast<std::size_t>(size.prefixes)),
      sequences_(static_cast<std::size_t>(size.sequences)) {
    const TextConfig& t = vlm.config().text;
    const std::int64_t n = size.sequences, q_width = t.heads * t.head_dim;
    const auto take = [&](Shape shape) { return arena.take_f32(shape, vlm.device()); };
    prefix_caches_ = take({size.prefixes, t.layers, 2, size.prefix_tokens, kv_width_});
    own_caches_ = take({n, t.layers, 2, size.own_tokens, kv_width_});
    hidden_ = take({n, t.hidden});
    normed_ = take({n, t.hidden});
    q_ = take({n, q_width});
    kv_ = take({2 * n, kv_width_});
    attended_ = take({n, q_width});
    gate_up_ = take({2 * n, t.intermediate});
    act_ = take({n, t.intermediate});
    cosine_ = take({n, t.head_dim / 2});
    sine_ = take({n, t.head_dim / 2});
    scores_ = take({n, t.heads, size.prefix_tokens + size.own_tokens});
    if (vlm.device() == Device::cpu) return;
    embedding_rows_ = arena.take(DType::i32, {n}, vlm.device());
    host_cosine_ = arena.take_f32({n, t.head_dim / 2});
    host_sine_ = arena.take_f32({n, t.head_dim / 2});
}

Tensor Decoder::cache(float* begin, std::int64_t tokens) const { return Tensor(begin, DType::f32, {tokens, kv_width_}, vlm_.device()); }

float* Decoder::prefix_cache(int prefix, std::size_t layer, int part) const {
    const auto place = (prefix * vlm_.config().text.layers + static_cast<std::int64_t>(layer)) * 2 + part;
    return prefix_caches_.f32() + place * size_.prefix_tokens * kv_width_;
}
float* Decoder::own_cache(int sequence, std::size_t layer, int part) const {
    const auto place = (sequence * vlm_.config().text.layers + static_cast<std::int64_t>(layer)) * 2 + part;
    return own_caches_.f32() + place * size_.own_tokens * kv_width_;
}

void Decoder::set_prefix(int prefix, const Session& session) {
    ATELIER_CHECK(prefix >= 0 && prefix < size_.prefixes && session.length() <= size_.prefix_tokens,
                  "prefix {} of {}, {} tokens of at most {}", prefix, size_.prefixes, session.length(),
                  size_.prefix_tokens);
    prefix_length_[static_cast<std::size_t>(prefix)] = session.length();
    for (std::size_t l = 0; l < vlm_.layers.size(); ++l) {
        const Tensor k = session.keys(l, 0), v = session.values(l, 0);
        transfer(k, cache(prefix_cache(prefix, l, 0), k.size(0)));
        transfer(v, cache(prefix_cache(prefix, l, 1), v.size(0)));
    }
}

void Decoder::set_sequence(int sequence, int prefix, const Session& session) {
    const std::int64_t begin = prefix_length_.at(static_cast<std::size_t>(prefix)), n = session.length() - begin;
    ATELIER_CHECK(sequence >= 0 && sequence < size_.sequences && n >= 0 && n <= size_.own_tokens,
                  "sequence {} of {}, {} tokens of at most {}", sequence, size_.sequences, n, size_.own_tokens);
    sequences_[static_cast<std::size_t>(sequence)] = {prefix, n, session.next_position()};
    for (std::size_t l = 0; l < vlm_.layers.size(); ++l) {
        const Tensor k = session.keys(l, begin), v = session.values(l, begin);
        transfer(k, cache(own_cache(sequence, l, 0), k.size(0)));
        transfer(v, cache(own_cache(sequence, l, 1), v.size(0)));
    }
}

Tensor Decoder::step(const nn::ParameterStore& weights, std::span<const int> sequences,
                     std::span<const std::int32_t> ids) {
    const DeviceScope scope(vlm_.device());
    const TextConfig& t = vlm_.config().text;
    const auto n = static_cast<std::int64_t>(sequences.size());
    ATELIER_CHECK(n >= 1 && n <= size_.sequences && ids.size() == sequences.size(), "{} tokens for {} of {} sequences",
                  ids.size(), n, size_.sequences);
    std::vector<std::array<std::int64_t, 3>> positions;
    std::vector<ops::CachedTokens> first, second;
    for (std::size_t i = 0; i < sequences.size(); ++i) {
        Sequence& s = sequences_.at(static_cast<std::size_t>(sequences[i]));
        ATELIER_CHECK(s.length < size_.own_tokens, "a sequence of more than {} tokens", size_.own_tokens);
        ATELIER_CHECK_INPUT(ids[i] >= 0 && ids[i] < t.vocabulary, "token {} of a vocabulary of {}", ids[i], t.vocabulary);
        positions.push_back({s.next_position, s.next_position, s.next_position});
        ++s.next_position;
        ++s.length;
        first.push_back({nullptr, nullptr, prefix_length_[static_cast<std::size_t>(s.prefix)]});
        second.push_back({nullptr, nullptr, s.length});
    }
    const Tensor rows = bring(vlm_.device(), Tensor::of(ids.data(), {n}), embedding_rows_);
    ops::gather_rows(n, t.hidden, rows.as<std::int32_t>(), weights.numbers(vlm_.embedding).f32(), nullptr, hidden_.f32());
    fill_tables(n, cosine_, sine_, host_cosine_, host_sine_, [&](float* cosine, float* sine) { text_rotation(t, positions, cosine, sine); });
    std::vector<float*> new_keys(sequences.size()), new_values(sequences.size());
    const std::int64_t q_width = t.heads * t.head_dim;
    const Tensor x = hidden_.slice(0, n), y = normed_.slice(0, n), q = q_.slice(0, n), attended = attended_.slice(0, n);
    const Tensor k = kv_.slice(0, n), v = kv_.slice(n, 2 * n);
    const ops::DecodeAttentionShape shape{t.heads, t.kv_heads, t.head_dim, size_.prefix_tokens + size_.own_tokens,
                                          1.0f / std::sqrt(static_cast<float>(t.head_dim))};
    for (std::size_t l = 0; l < vlm_.layers.size(); ++l) {
        const TextLayer& p = vlm_.layers[l];
        ops::rms_norm({n, t.hidden, 0, 0, t.eps, 0.0f}, x.f32(), weights[p.input_norm].f32(), y.f32(), nullptr);
        ops::linear_rows(y, weights[p.q], q);
        ops::linear_rows(y, weights[p.k], k);
        ops::linear_rows(y, weights[p.v], v);
        ops::rms_norm({n * t.heads, t.head_dim, 0, 0, t.eps, 0.0f}, q.f32(), weights[p.q_norm].f32(), q.f32(), nullptr);
        ops::rms_norm({n * t.kv_heads, t.head_dim, 0, 0, t.eps, 0.0f}, k.f32(), weights[p.k_norm].f32(), k.f32(), nullptr);
        ops::rope_half(n, t.heads, t.head_dim, q_width, cosine_.f32(), sine_.f32(), q.f32());
        ops::rope_half(n, t.kv_heads, t.head_dim, kv_width_, cosine_.f32(), sine_.f32(), k.f32());
        for (std::size_t i = 0; i < sequences.size(); ++i) {
            const int sequence = sequences[i], prefix = sequences_[static_cast<std::size_t>(sequence)].prefix;
            const std::int64_t at = (second[i].length - 1) * kv_width_;
            first[i].k = prefix_cache(prefix, l, 0);
            first[i].v = prefix_cache(prefix, l, 1);
            float* const own_k = own_cache(sequence, l, 0);
            float* const own_v = own_cache(sequence, l, 1);
            new_keys[i] = own_k + at;
            new_values[i] = own_v + at;
            second[i].k = own_k;
            second[i].v = own_v;
        }
        ops::append_rows(k, new_keys);
        ops::append_rows(v, new_values);
        ops::decode_attention(shape, q, first, second, attended, scores_);
        ops::linear_rows(attended, weights[p.out], y);
        ops::add(y.f32(), x.f32(), x.elements());
        ops::rms_norm({n, t.hidden, 0, 0, t.eps, 0.0f}, x.f32(), weights[p.post_norm].f32(), y.f32(), nullptr);
        const Tensor gate = gate_up_.slice(0, n), up = gate_up_.slice(n, 2 * n), act = act_.slice(0, n);
        ops::linear_rows(y, weights[p.gate], gate);
        ops::linear_rows(y, weights[p.up], up);
        ops::swiglu(n, t.intermediate, gate.f32(), up.f32(), t.intermediate, act.f32());
        ops::linear_rows(act, weights[p.down], y);
        ops::add(y.f32(), x.f32(), x.elements());
    }
    return x;
}

void Decoder::logits(const nn::ParameterStore& weights, const Tensor& states, const Tensor& out) {
    const DeviceScope scope(vlm_.device());
    const TextConfig& t = vlm_.config().text;
    const Tensor y = normed_.slice(0, states.size(0));
    ops::rms_norm({states.size(0), t.hidden, 0, 0, t.eps, 0.0f}, states.f32(), weights[vlm_.final_norm].f32(), y.f32(), nullptr);
    ops::linear_rows(y, weights[vlm_.head], out);
}

}  // namespace atelier::vlm
