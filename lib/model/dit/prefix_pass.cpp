#include <algorithm>

#include "core/parallel.hpp"
#include "model/dit/stream.hpp"
#include "nn/linear.hpp"
#include "ops/activation.hpp"
#include "ops/modulation.hpp"
#include "ops/norm.hpp"

namespace atelier::dit {
namespace {

StreamShape prefix_shape(const Layout& layout) {
    StreamShape s;
    s.rows = layout.prefix_tokens();
    s.cosine = layout.cosine.data();
    s.sine = layout.sine.data();
    s.own_limit = layout.limit.data();
    s.own_valid = layout.valid.empty() ? nullptr : layout.valid.data();
    return s;
}

}  // namespace

PrefixPass::PrefixPass(const Dit& dit, std::int64_t max_tokens, std::int64_t max_encoder_tokens, Keep keep, Arena& arena)
    : dit_(dit) {
    const Config& c = dit.config();
    const std::int64_t w = c.width();
    const bool training = keep != Keep::nothing;
    modulation_.plan(c, 1, training, arena);
    stream_.plan(c, 1, max_tokens, max_tokens, keep, false, arena);
    for (std::int64_t i = 0; i < c.layers; ++i) {
        keys_.push_back(arena.take_f32({max_tokens, 2 * w}));
        if (training) key_gradients_.push_back(arena.take_f32({max_tokens, 2 * w}));
    }
    text_normed_ = arena.take_f32({max_encoder_tokens, c.context_dim});
    text_inverse_ = arena.take_f32({max_encoder_tokens});
    for (Tensor* t : {&text_hidden_, &text_act_, &text_rows_}) *t = arena.take_f32({max_encoder_tokens, w});
    latent_rows_ = arena.take_f32({max_tokens, w});
    if (!training) return;
    for (Tensor* t : {&d_text_rows_, &d_text_act_}) *t = arena.take_f32({max_encoder_tokens, w});
    d_latent_rows_ = arena.take_f32({max_tokens, w});
    d_text_normed_ = arena.take_f32({max_encoder_tokens, c.context_dim});
}

Tensor PrefixPass::keys(std::int64_t layer) const {
    return keys_[static_cast<std::size_t>(layer)].slice(0, layout_->prefix_tokens());
}

Tensor PrefixPass::key_gradients(std::int64_t layer) const {
    return key_gradients_[static_cast<std::size_t>(layer)].slice(0, layout_->prefix_tokens());
}

void PrefixPass::zero_key_gradients() {
    for (const Tensor& t : key_gradients_) std::fill_n(t.f32(), t.elements(), 0.0f);
}

void PrefixPass::forward(const nn::ParameterStore& weights, const Layout& layout, const Tensor& encoder_states,
                         const Tensor& reference_latents, float timestep, const Tensor& outputs) {
    const Config& c = dit_.config();
    const std::int64_t w = c.width(), text = layout.encoder_tokens, rows = layout.prefix_tokens();
    ATELIER_CHECK(rows <= stream_.max_rows && text <= text_rows_.size(0),
                  "a prefix of {} tokens ({} of the encoder), planned for {} ({})", rows, text, stream_.max_rows,
                  text_rows_.size(0));
    ATELIER_CHECK(encoder_states.shape() == (Shape{text, c.context_dim}), "encoder states must be [{}, {}], found {}", text,
                  c.context_dim, encoder_states.shape().str());
    ATELIER_CHECK(layout.reference_tokens == 0 ||
                      reference_latents.shape() == (Shape{layout.reference_tokens, c.in_channels}),
                  "reference latents must be [{}, {}]", layout.reference_tokens, c.in_channels);
    layout_ = &layout;
    full_last_block_ = !outputs.empty();
    const StreamShape s = prefix_shape(layout);
    modulation_forward(dit_, weights, std::span(&timestep, 1), modulation_);

    const Tensor normed = text_normed_.slice(0, text), hidden = text_hidden_.slice(0, text), act = text_act_.slice(0, text);
    ops::rms_norm({text, c.context_dim, 0, 0, c.eps, 1.0f}, encoder_states.f32(), weights[dit_.text_norm].f32(), normed.f32(),
                  text_inverse_.f32());
    nn::project(weights, dit_.text_in, normed, hidden);
    ops::gelu_tanh(hidden.f32(), act.f32(), text * w);
    nn::project(weights, dit_.text_out, act, text_rows_.slice(0, text));
    if (layout.reference_tokens > 0)
        nn::project(weights, dit_.image_in, reference_latents, latent_rows_.slice(0, layout.reference_tokens));

    const bool saves = stream_.keep != Keep::nothing;
    const auto state = [&](std::int64_t i) {
        const auto at = static_cast<std::size_t>(saves ? i : i % 2);
        return stream_.inputs[at].slice(0, rows);
    };
    for (std::int64_t i = 0; i < rows; ++i) {
        const std::int32_t from = layout.source[static_cast<std::size_t>(i)];
        const float* row = from >= 0 ? text_rows_.f32() + from * w : latent_rows_.f32() + (-1 - from) * w;
        std::copy_n(row, w, state(0).f32() + i * w);
    }
    // Only keys and values of the last block serve the target; its rest runs on request, into memory of its own kind:
    // the other state buffer at inference, the text rows' neighbour otherwise.
    Tensor last_output;
    for (std::int64_t i = 0; i < c.layers; ++i) {
        const auto& a = stream_.blocks[static_cast<std::size_t>(stream_.keep == Keep::activations ? i : 0)];
        const bool last = i + 1 == c.layers;
        if (last) last_output = saves ? stream_.d_y.slice(0, rows) : state(i + 1);
        weights.acquire(i);
        block_forward(dit_, weights, i, s, modulation_, state(i), {}, a, stream_.attention_workspace,
                      last && !full_last_block_, last ? last_output : state(i + 1));
        weights.release(i);
        const float* qkv = a.qkv.f32();
        float* keys = keys_[static_cast<std::size_t>(i)].f32();
        for (std::int64_t r = 0; r < rows; ++r) std::copy_n(qkv + r * 3 * w + w, 2 * w, keys + r * 2 * w);
    }
    if (!full_last_block_) return;
    const Tensor normed_out = latent_rows_.slice(0, rows);
    ops::layer_norm_modulate({1, rows, w, w, c.eps}, last_output.f32(), modulation_.final_scale.f32(), normed_out.f32(),
                             stream_.blocks[0].mean2.f32(), stream_.blocks[0].inv2.f32());
    nn::project(weights, dit_.proj_out, normed_out, outputs);
}

void PrefixPass::backward(const nn::ParameterStore& weights, const nn::ParameterStore& gradients,
                          const Tensor& encoder_states, const Tensor& reference_latents, const Tensor& d_encoder_states,
                          const Tensor& d_reference_latents) {
    const Config& c = dit_.config();
    const Layout& layout = *layout_;
    ATELIER_CHECK(stream_.keep != Keep::nothing, "this pass was planned for inference");
    ATELIER_CHECK(!full_last_block_, "a prefix pass with outputs has no backward pass");
    const std::int64_t w = c.width(), text = layout.encoder_tokens, rows = layout.prefix_tokens();
    const StreamShape s = prefix_shape(layout);
    zero_modulation_gradients(modulation_);
    for (std::int64_t i = c.layers - 1; i >= 0; --i) {
        const Tensor x = stream_.inputs[static_cast<std::size_t>(i)].slice(0, rows);
        const auto& a = stream_.blocks[static_cast<std::size_t>(stream_.keep == Keep::activations ? i : 0)];
        const bool last = i + 1 == c.layers;
        weights.acquire(i);
        gradients.acquire(i);
        if (stream_.keep == Keep::inputs)
            block_forward(dit_, weights, i, s, modulation_, x, {}, a, stream_.attention_workspace, last,
                          stream_.d_y.slice(0, rows));
        block_backward(dit_, weights, gradients, i, s, modulation_, x, {}, {}, key_gradients(i), a, stream_, last);
        gradients.release(i);
        weights.release(i);
    }
    modulation_backward(dit_, weights, gradients, modulation_);

    // Rows back to the encoder's tokens (image slots get none) and the references' latents.
    const Tensor d_rows = d_text_rows_.slice(0, text);
    std::fill_n(d_rows.f32(), d_rows.elements(), 0.0f);
    for (std::int64_t i = 0; i < rows; ++i) {
        const std::int32_t from = layout.source[static_cast<std::size_t>(i)];
        float* row = from >= 0 ? d_rows.f32() + from * w : d_latent_rows_.f32() + (-1 - from) * w;
        std::copy_n(stream_.d_x.f32() + i * w, w, row);
    }
    if (layout.reference_tokens > 0) {
        const Tensor d_latents = d_latent_rows_.slice(0, layout.reference_tokens);
        nn::project_backward(weights, gradients, dit_.image_in, reference_latents, d_latents, d_reference_latents);
    }
    const Tensor d_act = d_text_act_.slice(0, text), hidden = text_hidden_.slice(0, text);
    const Tensor normed = text_normed_.slice(0, text), d_normed = d_text_normed_.slice(0, text);
    nn::project_backward(weights, gradients, dit_.text_out, text_act_.slice(0, text), d_rows, d_act);
    ops::gelu_tanh_backward(hidden.f32(), d_act.f32(), d_act.f32(), text * w);
    nn::project_backward(weights, gradients, dit_.text_in, normed, d_act, d_normed);
    ops::rms_norm_backward({text, c.context_dim, 0, 0, c.eps, 1.0f}, encoder_states.f32(), weights[dit_.text_norm].f32(),
                           text_inverse_.f32(), d_normed.f32(),
                           d_encoder_states.empty() ? d_normed.f32() : d_encoder_states.f32(),
                           nn::vector_gradient(gradients, dit_.text_norm));
}

}  // namespace atelier::dit
