#include <algorithm>
#include <atomic>

#include "model/dit/staging.hpp"
#include "model/dit/stream.hpp"
#include "nn/linear.hpp"
#include "ops/activation.hpp"
#include "ops/modulation.hpp"
#include "ops/norm.hpp"
#include "ops/rows.hpp"

namespace atelier::dit {
namespace {

StreamShape prefix_shape(const Layout& layout, const PassLayout& there) {
    StreamShape s;
    s.rows = layout.prefix_tokens();
    s.prompts = layout.prompts;
    s.cosine = there.cosine.f32();
    s.sine = there.sine.f32();
    s.limit = layout.limit.data();
    s.valid = layout.valid.empty() ? nullptr : layout.valid.data();
    return s;
}

}  // namespace

PrefixPass::PrefixPass(const Dit& dit, std::int64_t max_tokens, std::int64_t max_encoder_tokens, Keep keep, Arena& arena)
    : dit_(dit) {
    const PassScope scope(dit);
    const Config& c = dit.config();
    const Device device = dit.device();
    const std::int64_t w = c.width();
    const bool training = keep != Keep::nothing;
    modulation_.plan(dit, 1, training, arena);
    stream_.plan(dit, 1, max_tokens, max_tokens, keep, false, arena);
    for (std::int64_t i = 0; i < c.layers; ++i) {
        keys_.push_back(arena.take(dit.operand_dtype(), {max_tokens, 2 * w}, device));
        if (training) key_gradients_.push_back(arena.take_f32({max_tokens, 2 * w}, device));
    }
    text_normed_ = arena.take_f32({max_encoder_tokens, c.context_dim}, device);
    text_inverse_ = arena.take_f32({max_encoder_tokens}, device);
    for (Tensor* t : {&text_hidden_, &text_act_, &text_rows_}) *t = arena.take_f32({max_encoder_tokens, w}, device);
    latent_rows_ = arena.take_f32({max_tokens, w}, device);
    layout_there_.plan(dit, max_tokens, true, arena);
    states_there_ = plan_room(dit, {max_encoder_tokens, c.context_dim}, arena);
    references_there_ = plan_operand(dit, {max_tokens, c.in_channels}, arena);
    outputs_there_ = plan_room(dit, {max_tokens, c.out_channels}, arena);
    if (!training) return;
    for (Tensor* t : {&d_text_rows_, &d_text_act_}) *t = arena.take_f32({max_encoder_tokens, w}, device);
    d_latent_rows_ = arena.take_f32({max_tokens, w}, device);
}

Tensor PrefixPass::keys(std::int64_t layer) const {
    return keys_[static_cast<std::size_t>(layer)].slice(0, layout_->prefix_tokens());
}

Tensor PrefixPass::key_gradients(std::int64_t layer) const {
    return key_gradients_[static_cast<std::size_t>(layer)].slice(0, layout_->prefix_tokens());
}

void PrefixPass::zero_key_gradients() {
    for (const Tensor& t : key_gradients_) clear(t);
}

void PrefixPass::forward(const nn::ParameterStore& weights, const Layout& layout, const Tensor& encoder_states,
                         const Tensor& reference_latents, float timestep, const Tensor& outputs) {
    const PassScope scope(dit_);
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
    static std::atomic<std::uint64_t> runs{0};
    run_number_ = ++runs;
    layout_ = &layout;
    layout_there_.load(dit_, layout, 0, rows);
    full_last_block_ = !outputs.empty();
    const StreamShape s = prefix_shape(layout, layout_there_);
    load_timesteps(std::span(&timestep, 1), modulation_);
    modulation_forward(dit_, weights, modulation_);

    const Tensor normed = text_normed_.slice(0, text), hidden = text_hidden_.slice(0, text), act = text_act_.slice(0, text);
    ops::rms_norm({text, c.context_dim, 0, 0, c.eps, 1.0f}, bring(dit_, encoder_states, states_there_).f32(), weights[dit_.text_norm].f32(), normed.f32(),
                  text_inverse_.f32());
    nn::project(weights, dit_.text_in, normed, hidden);
    ops::gelu_tanh(hidden.f32(), act.f32(), text * w);
    nn::project(weights, dit_.text_out, act, text_rows_.slice(0, text));
    if (layout.reference_tokens > 0)
        nn::project(weights, dit_.image_in, bring_operand(dit_, reference_latents, references_there_), latent_rows_.slice(0, layout.reference_tokens));

    const bool saves = stream_.keep != Keep::nothing;
    const auto state = [&](std::int64_t i) {
        const auto at = static_cast<std::size_t>(saves ? i : i % 2);
        return stream_.inputs[at].slice(0, rows);
    };
    ops::gather_rows(rows, w, layout_there_.source.as<std::int32_t>(), text_rows_.f32(), latent_rows_.f32(), state(0).f32());
    // Only keys and values of the last block serve the target; its rest runs on request, into memory of its own kind:
    // the other state buffer at inference, the text rows' neighbour otherwise.
    Tensor last_output;
    for (std::int64_t i = 0; i < c.layers; ++i) {
        const BlockActivations& a = stream_.of(i);
        const bool last = i + 1 == c.layers;
        if (last) last_output = saves ? stream_.d_y.slice(0, rows) : state(i + 1);
        weights.acquire(i);
        block_forward(dit_, weights, {i, i > 0, last ? nullptr : &stream_.of(i + 1)}, s, modulation_, state(i), {}, a, stream_.attention_workspace,
                      last && !full_last_block_, last ? last_output : state(i + 1));
        weights.release(i);
        ops::copy_columns(rows, 2 * w, ops::Operand(a.qkv).from(w), 3 * w, keys_[static_cast<std::size_t>(i)], 2 * w);
    }
    if (!full_last_block_) return;
    const Tensor normed_out = latent_rows_.slice(0, rows);
    ops::layer_norm_modulate({1, rows, w, w, c.eps}, last_output.f32(), modulation_.final_scale.f32(), normed_out.f32(),
                             stream_.blocks[0].mean2.f32(), stream_.blocks[0].inv2.f32());
    const Tensor out = there(dit_, outputs, outputs_there_);
    nn::project(weights, dit_.proj_out, normed_out, out);
    transfer(out, outputs);
}

void PrefixPass::backward(const nn::ParameterStore& weights, const nn::ParameterStore& gradients,
                          const Tensor& encoder_states, const Tensor& reference_latents, const Tensor& d_encoder_states,
                          const Tensor& d_reference_latents) {
    const PassScope scope(dit_);
    const Config& c = dit_.config();
    const Layout& layout = *layout_;
    ATELIER_CHECK(stream_.keep != Keep::nothing, "this pass was planned for inference");
    ATELIER_CHECK(!full_last_block_, "a prefix pass with outputs has no backward pass");
    const std::int64_t w = c.width(), text = layout.encoder_tokens, rows = layout.prefix_tokens();
    const StreamShape s = prefix_shape(layout, layout_there_);
    zero_modulation_gradients(modulation_);
    for (std::int64_t i = c.layers - 1; i >= 0; --i) {
        const Tensor x = stream_.inputs[static_cast<std::size_t>(i)].slice(0, rows);
        const BlockActivations& a = stream_.of(i);
        const bool last = i + 1 == c.layers;
        weights.acquire(i);
        gradients.acquire(i);
        if (stream_.keep != Keep::activations)
            block_forward(dit_, weights, {.layer = i, .kept = stream_.keep}, s, modulation_, x, {}, a, stream_.attention_workspace, last, {});
        block_backward(dit_, weights, gradients, i, s, modulation_, x, {}, {}, key_gradients(i), a, stream_, last);
        gradients.release(i);
        weights.release(i);
    }
    modulation_backward(dit_, weights, gradients, modulation_);

    // Rows back to the encoder's tokens (image slots get none) and the references' latents.
    const Tensor d_rows = d_text_rows_.slice(0, text);
    clear(d_rows);
    ops::scatter_rows(rows, w, layout_there_.source.as<std::int32_t>(), stream_.d_x.f32(), d_rows.f32(), d_latent_rows_.f32());
    if (layout.reference_tokens > 0) {
        const Tensor d_latents = d_latent_rows_.slice(0, layout.reference_tokens);
        const Tensor d_in = there(dit_, d_reference_latents, references_there_);
        nn::project_backward(weights, gradients, dit_.image_in, bring_operand(dit_, reference_latents, references_there_), d_latents, d_in);
        if (!d_in.empty()) transfer(d_in, d_reference_latents);
    }
    const Tensor d_act = d_text_act_.slice(0, text), hidden = text_hidden_.slice(0, text);
    const Tensor normed = text_normed_.slice(0, text);
    nn::project_backward(weights, gradients, dit_.text_out, text_act_.slice(0, text), d_rows, d_act);
    ops::gelu_tanh_backward(hidden.f32(), d_act.f32(), d_act.f32(), text * w);
    // The normed rows have served: their memory takes the gradient.
    nn::project_backward(weights, gradients, dit_.text_in, normed, d_act, normed);
    ops::rms_norm_backward({text, c.context_dim, 0, 0, c.eps, 1.0f}, bring(dit_, encoder_states, states_there_).f32(),
                           weights[dit_.text_norm].f32(), text_inverse_.f32(), normed.f32(), normed.f32(),
                           nn::vector_gradient(gradients, dit_.text_norm));
    if (!d_encoder_states.empty()) transfer(normed, d_encoder_states);
}

}  // namespace atelier::dit
