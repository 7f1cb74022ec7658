#include "model/dit/staging.hpp"
#include "model/dit/stream.hpp"
#include "nn/linear.hpp"
#include "ops/modulation.hpp"

namespace atelier::dit {
namespace {

StreamShape target_shape(const Layout& layout, const PassLayout& there, std::int64_t batch) {
    StreamShape s;
    s.groups = batch;
    s.rows = layout.target_tokens;
    s.of_targets = true;
    s.prompts = layout.prompts;
    s.cosine = there.cosine.f32();
    s.sine = there.sine.f32();
    s.valid = layout.valid.empty() ? nullptr : layout.valid.data();
    return s;
}

Tensor flat(const Tensor& t, std::int64_t rows) { return t.reshaped({rows, t.elements() / rows}); }

}  // namespace

TargetPass::TargetPass(const Dit& dit, std::int64_t batch, std::int64_t max_target_tokens, std::int64_t max_prefix_tokens,
                       Keep keep, Arena& arena, std::int64_t prompts)
    : dit_(dit), batch_(batch) {
    const Config& c = dit.config();
    const PassScope scope(dit);
    const std::int64_t rows = batch * max_target_tokens;
    modulation_.plan(dit, batch, keep != Keep::nothing, arena);
    stream_.plan(dit, batch, rows, max_prefix_tokens + max_target_tokens, keep, true, arena);
    final_normed_ = arena.take(dit.operand_dtype(), {rows, c.width()}, dit.device());
    final_mean_ = arena.take_f32({rows}, dit.device());
    final_inverse_ = arena.take_f32({rows}, dit.device());
    layout_there_.plan(dit, prompts * max_target_tokens, false, arena);
    latents_there_ = plan_operand(dit, {rows, c.in_channels}, arena);
    velocity_there_ = plan_operand(dit, {rows, c.out_channels}, arena);
}

void TargetPass::load_layout(const PrefixPass& prefix) {
    // A run has one layout, of which a target pass always reads the same range; on a CPU it is read in place.
    if (loaded_run_ == prefix.run_number()) return;
    const Layout& layout = prefix.layout();
    loaded_run_ = 0;
    layout_there_.load(dit_, layout, layout.prefix_tokens(), layout.prompt_count() * layout.target_tokens);
    loaded_run_ = prefix.run_number();
}

void TargetPass::forward(const nn::ParameterStore& weights, const PrefixPass& prefix, const Tensor& latents,
                         std::span<const float> timesteps, const Tensor& velocity) {
    const PassScope scope(dit_);
    const Config& c = dit_.config();
    load_layout(prefix);
    const StreamShape s = target_shape(prefix.layout(), layout_there_, batch_);
    const std::int64_t rows = s.groups * s.rows;
    ATELIER_CHECK(latents.elements() == rows * c.in_channels && velocity.elements() == rows * c.out_channels &&
                      static_cast<std::int64_t>(timesteps.size()) == batch_ && rows <= stream_.max_rows &&
                      batch_ % std::ssize(s.prompts) == 0,
                  "a target pass of {} x {} tokens was given latents {}, {} timesteps and {} prompts", batch_, s.rows,
                  latents.shape().str(), timesteps.size(), s.prompts.size());
    load_timesteps(timesteps, modulation_);
    const Tensor in = flat(bring_operand(dit_, latents, latents_there_), rows), out = there(dit_, velocity, velocity_there_);
    // Inference repeats the same work for every step; a mask of keys would come from host memory.
    if (stream_.keep == Keep::nothing && weights.is_fixed() && s.valid == nullptr)
        recorded(weights, prefix, in, out).run([&] { run(weights, prefix, s, in, out); });
    else
        run(weights, prefix, s, in, out);
    transfer(out, velocity);
}

ops::Repeated& TargetPass::recorded(const nn::ParameterStore& weights, const PrefixPass& prefix, const Tensor& in, const Tensor& out) {
    const Recorded::Work work{weights.place(), weights.lora(), prefix.run_number(), in.raw(), out.raw()};
    for (Recorded& r : recorded_)
        if (r.work == work) return r.graph;
    // Two branches of guidance take turns: the one used longer ago goes.
    std::swap(recorded_[0], recorded_[1]);
    recorded_[0].work = work;
    recorded_[0].graph.forget();
    return recorded_[0].graph;
}

void TargetPass::run(const nn::ParameterStore& weights, const PrefixPass& prefix, const StreamShape& s, const Tensor& in, const Tensor& out) {
    const Config& c = dit_.config();
    const std::int64_t rows = s.groups * s.rows;
    modulation_forward(dit_, weights, modulation_);
    const bool saves = stream_.keep != Keep::nothing;
    const auto state = [&](std::int64_t i) {
        return stream_.inputs[static_cast<std::size_t>(saves ? i : i % 2)].slice(0, rows);
    };
    nn::project(weights, dit_.image_in, in, state(0));
    for (std::int64_t i = 0; i < c.layers; ++i) {
        weights.acquire(i);
        block_forward(dit_, weights, {i, i > 0, i + 1 < c.layers ? &stream_.of(i + 1) : nullptr}, s, modulation_, state(i), prefix.keys(i),
                      stream_.of(i), stream_.attention_workspace, false, state(i + 1));
        weights.release(i);
    }
    ops::layer_norm_modulate({s.groups, s.rows, c.width(), c.width(), c.eps}, state(c.layers).f32(),
                             modulation_.final_scale.f32(), final_normed_, final_mean_.f32(), final_inverse_.f32());
    nn::project(weights, dit_.proj_out, final_normed_.slice(0, rows), flat(out, rows));
}

void TargetPass::backward(const nn::ParameterStore& weights, const nn::ParameterStore& gradients, PrefixPass& prefix,
                          const Tensor& latents, const Tensor& d_velocity, const Tensor& d_latents) {
    const PassScope scope(dit_);
    const Config& c = dit_.config();
    load_layout(prefix);
    const StreamShape s = target_shape(prefix.layout(), layout_there_, batch_);
    const std::int64_t rows = s.groups * s.rows;
    ATELIER_CHECK(stream_.keep != Keep::nothing, "this pass was planned for inference");
    const Tensor d_out = flat(bring_operand(dit_, d_velocity, velocity_there_), rows);
    zero_modulation_gradients(modulation_);
    const Tensor d_x = stream_.d_x.slice(0, rows), d_y = stream_.d_y.slice(0, rows);
    nn::project_backward(weights, gradients, dit_.proj_out, final_normed_.slice(0, rows), d_out, d_y);
    clear(d_x);
    ops::layer_norm_modulate_backward({s.groups, s.rows, c.width(), c.width(), c.eps},
                                      stream_.inputs[static_cast<std::size_t>(c.layers)].f32(), modulation_.final_scale.f32(),
                                      final_mean_.f32(), final_inverse_.f32(), d_y.f32(), d_x.f32(),
                                      modulation_.d_final.f32());
    for (std::int64_t i = c.layers - 1; i >= 0; --i) {
        const Tensor x = stream_.inputs[static_cast<std::size_t>(i)].slice(0, rows);
        const BlockActivations& a = stream_.of(i);
        weights.acquire(i);
        gradients.acquire(i);
        if (stream_.keep != Keep::activations)
            block_forward(dit_, weights, {.layer = i, .kept = stream_.keep}, s, modulation_, x, prefix.keys(i), a, stream_.attention_workspace, false, {});
        block_backward(dit_, weights, gradients, i, s, modulation_, x, prefix.keys(i), prefix.key_gradients(i), {}, a, stream_,
                       false);
        gradients.release(i);
        weights.release(i);
    }
    const Tensor d_in = there(dit_, d_latents, latents_there_);
    nn::project_backward(weights, gradients, dit_.image_in, flat(bring_operand(dit_, latents, latents_there_), rows), d_x,
                         d_in.empty() ? Tensor() : flat(d_in, rows));
    if (!d_in.empty()) transfer(d_in, d_latents);
    modulation_backward(dit_, weights, gradients, modulation_);
}

}  // namespace atelier::dit
