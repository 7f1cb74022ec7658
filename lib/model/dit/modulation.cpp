#include <cmath>

#include "core/device.hpp"
#include "model/dit/stream.hpp"
#include "nn/linear.hpp"
#include "ops/activation.hpp"

namespace atelier::dit {
namespace {

/// Cosines first, then sines; t is multiplied by 1000. Frequencies and 1000 t are single precision by definition.
void embed_timestep(float t, float* out) {
    constexpr std::int64_t half = sinusoid_width / 2;
    const float scaled = 1000.0f * t;
    for (std::int64_t i = 0; i < half; ++i) {
        const float exponent = static_cast<float>(-std::log(10000.0)) * static_cast<float>(i) / static_cast<float>(half);
        const double angle = static_cast<double>(scaled) * static_cast<double>(std::exp(exponent));
        out[i] = static_cast<float>(std::cos(angle));
        out[half + i] = static_cast<float>(std::sin(angle));
    }
}

}  // namespace

void ModulationBuffers::plan(const Dit& dit, std::int64_t groups, bool training, Arena& arena) {
    const std::int64_t w = dit.config().width();
    const Device there = dit.device();
    host_sinusoid = arena.take_f32({groups, sinusoid_width});
    sinusoid = there == Device::cpu ? host_sinusoid : arena.take_f32({groups, sinusoid_width}, there);
    for (Tensor* t : {&hidden, &hidden_act, &temb, &temb_act, &final_scale}) *t = arena.take_f32({groups, w}, there);
    blocks = arena.take_f32({groups, 4 * w}, there);
    if (!training) return;
    for (Tensor* t : {&d_final, &d_temb_act, &d_temb, &d_hidden}) *t = arena.take_f32({groups, w}, there);
    d_blocks = arena.take_f32({groups, 4 * w}, there);
}

void load_timesteps(std::span<const float> timesteps, ModulationBuffers& m) {
    for (std::int64_t g = 0; g < m.temb.size(0); ++g)
        embed_timestep(timesteps[static_cast<std::size_t>(g)], m.host_sinusoid.f32() + g * sinusoid_width);
    transfer(m.host_sinusoid, m.sinusoid);
}

void modulation_forward(const Dit& dit, const nn::ParameterStore& weights, ModulationBuffers& m) {
    const std::int64_t w = dit.config().width(), groups = m.temb.size(0);
    nn::project(weights, dit.time_in, m.sinusoid, m.hidden);
    ops::silu(m.hidden.f32(), m.hidden_act.f32(), groups * w);
    nn::project(weights, dit.time_out, m.hidden_act, m.temb);
    ops::silu(m.temb.f32(), m.temb_act.f32(), groups * w);
    nn::project(weights, dit.modulation, m.temb_act, m.blocks);
    nn::project(weights, dit.norm_out, m.temb_act, m.final_scale);
    for (std::int64_t g = 0; g < groups; ++g)
        for (std::int64_t part : {1, 3}) {
            float* gate = m.blocks.f32() + (g * 4 + part) * w;
            ops::tanh(gate, gate, w);
        }
}

void zero_modulation_gradients(ModulationBuffers& m) {
    clear(m.d_blocks);
    clear(m.d_final);
}

void modulation_backward(const Dit& dit, const nn::ParameterStore& weights, const nn::ParameterStore& gradients,
                         ModulationBuffers& m) {
    const std::int64_t w = dit.config().width(), groups = m.temb.size(0);
    for (std::int64_t g = 0; g < groups; ++g)
        for (std::int64_t part : {1, 3}) {
            const float* gate = m.blocks.f32() + (g * 4 + part) * w;
            float* d = m.d_blocks.f32() + (g * 4 + part) * w;
            ops::tanh_backward(gate, d, d, w);
        }
    nn::project_backward(weights, gradients, dit.modulation, m.temb_act, m.d_blocks, m.d_temb_act);
    nn::project_backward(weights, gradients, dit.norm_out, m.temb_act, m.d_final, m.d_temb_act, true);
    ops::silu_backward(m.temb.f32(), m.d_temb_act.f32(), m.d_temb.f32(), groups * w);
    nn::project_backward(weights, gradients, dit.time_out, m.hidden_act, m.d_temb, m.d_temb_act);
    ops::silu_backward(m.hidden.f32(), m.d_temb_act.f32(), m.d_hidden.f32(), groups * w);
    nn::project_backward(weights, gradients, dit.time_in, m.sinusoid, m.d_hidden, {});
}

}  // namespace atelier::dit
