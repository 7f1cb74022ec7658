// Times of the device's kernels, of products and of the transformer, as lines "result: NAME = VALUE UNIT". By tests/gpu/run.sh.
//   device_bench kernels ROWS WIDTH | products | copy MIB | dit LAYERS HEADS HEAD_DIM TOKENS_HIGH TOKENS_WIDE BATCH forward|train |
//   group LAYERS HEADS HEAD_DIM TOKENS_HIGH TOKENS_WIDE MEMBERS MICRO_BATCH STEPS TRAINED REFERENCE_SIDE(0: none) ALL_LAYERS
#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <functional>

#include "comm/run_main.hpp"
#include "core/host_vectors.hpp"
#include "core/philox.hpp"
#include "flow/noise.hpp"
#include "model/dit/dit.hpp"
#include "ops/backend.hpp"
#include "optim/adamw.hpp"
#include "optim/gradient_norm.hpp"
#include "rl/group_policy.hpp"

namespace {

using namespace atelier;

/// Seconds of one call: the fastest of five series of calls, each about `series` seconds long.
double seconds(const std::function<void()>& call, double series) {
    const auto timed = [&](int calls) {
        device_memory().synchronise();
        const auto begin = std::chrono::steady_clock::now();
        for (int i = 0; i < calls; ++i) call();
        device_memory().synchronise();
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    };
    call();
    const int calls = std::max(1, static_cast<int>(series / std::max(timed(1), 1e-7)));
    double best = 1e30;
    for (int i = 0; i < 5; ++i) best = std::min(best, timed(calls) / calls);
    return best;
}

void result(const std::string& name, double value, const char* unit) {
    fmt::print("result: {} = {:.4g} {}\n", name, value, unit);
    std::fflush(stdout);
}

/// `count` numbers of a repeated series of normal ones.
Tensor numbers(Arena& arena, std::int64_t count) {
    const Tensor out = arena.take_f32({count}, Device::cuda);
    if (arena.is_measuring()) return out;
    std::vector<float> series(static_cast<std::size_t>(std::min<std::int64_t>(count, 1 << 22)));
    fill_normal(random_key(1, RandomUse::test), series);
    for (float& v : series) v *= 0.02f;
    const auto n = static_cast<std::int64_t>(series.size());
    for (std::int64_t at = 0; at < count; at += n)
        transfer(Tensor::of(series.data(), {std::min(n, count - at)}), out.slice(at, std::min(count, at + n)));
    return out;
}

struct Kernel {
    const char* name;
    double bytes;  ///< the floor's: of each number read or written once
    std::function<void()> run;
};

void bench_kernels(std::int64_t rows, std::int64_t width) {
    const std::int64_t n = rows * width, heads = std::max<std::int64_t>(1, width / 128), head_dim = width / heads;
    Workspace workspace("kernels");
    struct Buffers {
        Tensor a, b, c, d, e, row1, row2, scale, qkv, qkv_out, qkv_bits, cosine, sine, room;
    };
    const ops::QkNormRopeShape rope{rows, heads, head_dim, rows, 1e-6f};
    const DeviceScope scope(Device::cuda);
    const Buffers s = workspace.build([&](Arena& arena) {
        Buffers b;
        for (Tensor* t : {&b.a, &b.b, &b.c, &b.d, &b.e}) *t = numbers(arena, n);
        for (Tensor* t : {&b.row1, &b.row2}) *t = numbers(arena, rows * 2 * heads);
        b.scale = numbers(arena, 4 * width);
        for (Tensor* t : {&b.qkv, &b.qkv_out}) *t = numbers(arena, 3 * n);
        b.qkv_bits = arena.take(DType::bf16, {3 * n}, Device::cuda);
        for (Tensor* t : {&b.cosine, &b.sine}) *t = numbers(arena, rows * head_dim / 2);
        b.room = numbers(arena, ops::qk_norm_rope_workspace(rope));
        return b;
    });
    const auto f = [](const Tensor& t) { return t.f32(); };
    const ops::ModulationShape m{1, rows, width, 4 * width, 1e-6f};
    const double one = 4.0 * static_cast<double>(n);
    auto *bits = static_cast<std::uint16_t*>(s.e.raw()), *qkv_bits = static_cast<std::uint16_t*>(s.qkv_bits.raw());
    const ops::Backend& device = ops::backend();
    const auto rotate = [&](ops::OperandOut to) {
        ops::qk_norm_rope(rope, f(s.qkv), f(s.scale), f(s.scale) + head_dim, f(s.cosine), f(s.sine), to, f(s.row1));
    };
    const auto rotate_back = [&](ops::OperandOut to) {
        ops::qk_norm_rope_backward(rope, f(s.qkv), f(s.scale), f(s.scale) + head_dim, f(s.cosine), f(s.sine), f(s.row1), f(s.qkv_out), to,
                                   f(s.scale) + width, f(s.scale) + 2 * width, f(s.room));
    };
    const std::vector<Kernel> kernels{
        {"layer_norm_modulate", 2 * one, [&] { ops::layer_norm_modulate(m, f(s.a), f(s.scale), f(s.b), f(s.row1), f(s.row2)); }},
        {"layer_norm_modulate to bf16", 1.5 * one, [&] { ops::layer_norm_modulate(m, f(s.a), f(s.scale), bits, f(s.row1), f(s.row2)); }},
        {"layer_norm_modulate_backward", 4 * one,
         [&] { ops::layer_norm_modulate_backward(m, f(s.a), f(s.scale), f(s.row1), f(s.row2), f(s.b), f(s.c), f(s.scale) + width); }},
        {"gate_residual", 3 * one, [&] { ops::gate_residual(m, f(s.a), f(s.scale), f(s.b), f(s.c)); }},
        {"gate_residual_norm_modulate of bf16 to bf16", 3 * one,
         [&] { ops::gate_residual_norm_modulate(m, f(s.a), f(s.scale), qkv_bits, f(s.c), f(s.scale) + width, bits, f(s.row1), f(s.row2)); }},
        {"layer_norm_modulate_backward of bf16", 3.5 * one,
         [&] { ops::layer_norm_modulate_backward(m, f(s.a), f(s.scale), f(s.row1), f(s.row2), bits, f(s.c), f(s.scale) + width); }},
        {"qk_norm_rope of bf16 to bf16", 3 * one,
         [&] {
             ops::qk_norm_rope(rope, qkv_bits, f(s.scale), f(s.scale) + head_dim, f(s.cosine), f(s.sine), static_cast<std::uint16_t*>(s.qkv_out.raw()),
                               f(s.row1));
         }},
        {"swiglu of bf16 to bf16", 1.5 * one, [&] { ops::swiglu(rows, width, qkv_bits, qkv_bits + width, 3 * width, bits); }},
        {"gate_residual_backward", 3 * one,
         [&] { ops::gate_residual_backward(m, f(s.scale), f(s.a), f(s.b), f(s.c), f(s.scale) + width); }},
        {"gate_residual_backward to bf16", 2.5 * one,
         [&] { ops::gate_residual_backward(m, f(s.scale), f(s.a), f(s.b), bits, f(s.scale) + width); }},
        {"qk_norm_rope", 6 * one, [&] { rotate(f(s.qkv_out)); }},
        {"qk_norm_rope to bf16", 4.5 * one, [&] { rotate(qkv_bits); }},
        {"qk_norm_rope_backward", 6 * one, [&] { rotate_back(f(s.qkv_out)); }},
        {"qk_norm_rope_backward to bf16", 6.5 * one, [&] { rotate_back(qkv_bits); }},
        {"swiglu", 3 * one, [&] { ops::swiglu(rows, width, f(s.qkv), f(s.qkv) + width, 3 * width, f(s.a)); }},
        {"swiglu to bf16", 2.5 * one, [&] { ops::swiglu(rows, width, f(s.qkv), f(s.qkv) + width, 3 * width, bits); }},
        {"swiglu_backward", 5 * one,
         [&] { ops::swiglu_backward(rows, width, f(s.qkv), f(s.qkv) + width, 3 * width, f(s.a), f(s.qkv_out), f(s.qkv_out) + width); }},
        {"swiglu_backward to bf16", 4 * one,
         [&] { ops::swiglu_backward(rows, width, f(s.qkv), f(s.qkv) + width, 3 * width, f(s.a), qkv_bits, qkv_bits + width); }},
        {"gelu_tanh", 2 * one, [&] { ops::gelu_tanh(f(s.a), f(s.b), n); }},
        {"rms_norm", 2 * one, [&] { ops::rms_norm({rows, width, 0, 0, 1e-6f, 1}, f(s.a), f(s.scale), f(s.b), f(s.row1)); }},
        {"to_bf16", 1.5 * one, [&] { ops::copy_columns(rows, width, f(s.a), width, bits, width); }},
        {"sampler_step", 4 * one,
         [&] { device.sampler_step(1, n, {0.9f, -0.1f, 0.1f}, f(s.a), f(s.b), f(s.c), f(s.d), static_cast<double*>(s.room.raw())); }},
        {"adamw", 7.5 * one,
         [&] { device.adamw(n, {1, 0.1f, 0.999f, 0.001f, 1e-6f, 1, 1e-8f, 1}, f(s.a), f(s.b), f(s.c), f(s.d), bits); }},
        {"sum_of_squares", one, [&] { device.sum_of_squares(n, f(s.a), static_cast<double*>(s.room.raw())); }},
    };
    for (const Kernel& k : kernels) result(fmt::format("{} {}x{}", k.name, rows, width), k.bytes / seconds(k.run, 0.02) / 1e9, "GB/s");
}

void bench_products() {
    const std::int64_t size = 8192;
    Workspace workspace("products");
    const DeviceScope scope(Device::cuda);
    const auto [a, b, c] = workspace.build([&](Arena& arena) {
        return std::tuple(numbers(arena, size * size).reshaped({size, size}), numbers(arena, size * size).reshaped({size, size}),
                          arena.take_f32({size, size}, Device::cuda));
    });
    ops::backend().keep_bf16_copy(a.f32(), size * size);
    ops::backend().keep_bf16_copy(b.f32(), size * size);
    const double flop = 2.0 * size * size * size;
    result("bf16 product 8192^3, operands kept in bf16", flop / seconds([&] { ops::linear(a, b, {}, c); }, 0.05) / 1e12, "TFLOP/s");
    ops::backend().keep_bf16_copy(a.f32(), 0);
    result("bf16 product 8192^3, one operand rounded first", flop / seconds([&] { ops::linear(a, b, {}, c); }, 0.05) / 1e12, "TFLOP/s");
    ops::backend().keep_bf16_copy(b.f32(), 0);
}

void bench_copy(std::int64_t mib) {
    const std::int64_t count = mib << 18;
    Workspace workspace("copy");
    const auto [host, there] = workspace.build(
        [&](Arena& arena) { return std::pair(arena.take_f32({count}), arena.take_f32({count}, Device::cuda)); });
    std::fill_n(host.f32(), count, 1.0f);
    result("pageable memory to the device", 4.0 * static_cast<double>(count) / seconds([&] { transfer(host, there); }, 0.1) / 1e9, "GB/s");
}

dit::Config sizes(std::int64_t layers, std::int64_t heads, std::int64_t head_dim) {
    dit::Config config;
    config.layers = layers;
    config.heads = heads;
    config.head_dim = head_dim;
    config.rope_dims = {head_dim / 8, head_dim / 16 * 7, head_dim / 16 * 7};
    config.context_dim = config.width();
    return config;
}

/// Small numbers in all of `tensors`.
void fill(std::initializer_list<Tensor> tensors) {
    Workspace series("series");
    const Tensor some = series.build([&](Arena& arena) { return numbers(arena, 1 << 22); });
    for (const Tensor& t : tensors)
        for (std::int64_t at = 0; at < t.elements(); at += some.elements()) {
            const std::int64_t n = std::min(some.elements(), t.elements() - at);
            transfer(some.slice(0, n), t.slice(at, at + n));
        }
}

void bench_dit(std::int64_t layers, std::int64_t heads, std::int64_t head_dim, dit::Grid grid, std::int64_t batch, bool trains) {
    const dit::Config config = sizes(layers, heads, head_dim);
    const dit::Dit model(config, Device::cuda, ops::ProductPrecision::bf16);
    constexpr std::int64_t text = 128;
    const std::vector<std::uint8_t> slots(text, 0);
    const dit::Layout layout = dit::make_layout(config, slots, {}, grid);
    const std::int64_t tokens = grid.tokens(), width = config.width();
    Workspace workspace("dit");
    struct Run {
        nn::ParameterStore weights, gradients;
        std::unique_ptr<dit::PrefixPass> prefix;
        std::unique_ptr<dit::TargetPass> target;
        Tensor states, latents, velocity;
    };
    const Run r = workspace.build([&](Arena& arena) {
        Run run;
        run.weights = nn::ParameterStore(model.table(), arena, Device::cuda);
        if (trains) run.gradients = nn::ParameterStore(model.table(), arena, Device::cuda);
        const dit::Keep keep = trains ? dit::Keep::inputs : dit::Keep::nothing;
        run.prefix = std::make_unique<dit::PrefixPass>(model, text, text, keep, arena);
        run.target = std::make_unique<dit::TargetPass>(model, batch, tokens, text, keep, arena);
        run.states = arena.take_f32({text, config.context_dim}, Device::cuda);
        run.latents = arena.take_f32({batch, tokens, config.in_channels}, Device::cuda);
        run.velocity = arena.take_f32({batch, tokens, config.out_channels}, Device::cuda);
        return run;
    });
    fill({r.weights.flat(), r.states.reshaped({r.states.elements()}), r.latents.reshaped({r.latents.elements()})});
    ops::backend().keep_bf16_copy(r.weights.data(), r.weights.flat().elements());
    const std::vector<float> times(static_cast<std::size_t>(batch), 0.5f);
    // Products of a token in a block, forward: 4 + 3 mlp_ratio matrices of width^2; attention: two products with every key.
    const double forward_flop = static_cast<double>(batch * tokens * layers) *
                                (2.0 * static_cast<double>(width * width * (4 + 3 * config.mlp_ratio)) + 4.0 * static_cast<double>((text + tokens) * width));
    r.prefix->forward(r.weights, layout, r.states, {}, 0.0f);
    const double time = seconds(
        [&] {
            r.target->forward(r.weights, *r.prefix, r.latents, times, r.velocity);
            if (trains) r.target->backward(r.weights, r.gradients, *r.prefix, r.latents, r.velocity, {});
        },
        0.5);
    const std::string name = fmt::format("dit {} blocks of width {}, {} x {} tokens, {}", layers, width, batch, tokens,
                                         trains ? "forward + backward (recompute not counted)" : "forward");
    result(name, 1e3 * time, "ms");
    result(name, forward_flop * (trains ? 3 : 1) / time / 1e12, "TFLOP/s");
    ops::backend().keep_bf16_copy(r.weights.data(), 0);
}

struct GroupSizes {
    std::int64_t members, micro_batch, steps, trained, reference_side, all_layers;
};

/// One group's part of a GRPO iteration, without guidance: sampled, trained on some of its steps (block inputs kept, forward passes
/// repeated), and an update of all weights with AdamW's memory in host memory. `all_layers`: what times are scaled to.
void bench_group(std::int64_t layers, std::int64_t heads, std::int64_t head_dim, dit::Grid grid, const GroupSizes& g) {
    const dit::Config config = sizes(layers, heads, head_dim);
    const dit::Dit model(config, Device::cuda, ops::ProductPrecision::bf16);
    pipeline::EncodedPrompt prompt;
    const std::int64_t slots = g.reference_side * g.reference_side / 4;
    prompt.image_slot.resize(static_cast<std::size_t>(128 + slots));
    std::fill_n(prompt.image_slot.begin() + 1, slots, std::uint8_t{1});
    if (g.reference_side > 0) {
        prompt.references = {{g.reference_side, g.reference_side}};
        prompt.reference_latents.assign(static_cast<std::size_t>(g.reference_side * g.reference_side * config.in_channels), 0.02f);
    }
    prompt.tokens = static_cast<std::int64_t>(prompt.image_slot.size());
    prompt.states.assign(static_cast<std::size_t>(prompt.tokens * config.context_dim), 0.02f);

    Workspace workspace("weights");
    const std::int64_t size = model.table().flat_size();
    const auto [weights, gradients] = workspace.build([&](Arena& arena) {
        return std::pair(nn::ParameterStore(model.table(), arena, Device::cuda), nn::ParameterStore(model.table(), arena, Device::cuda));
    });
    fill({weights.flat()});
    ops::backend().keep_bf16_copy(weights.data(), size);
    const Numbers m(size), v(size);
    HostVectors state({m.tensor(), v.tensor()}, 1 << 24);
    optim::GradientNorm norm(size);

    rl::SamplingSpec spec;
    spec.target = grid;
    for (std::int64_t i = 0; i <= g.steps; ++i) spec.schedule.sigmas.push_back(1.0f - static_cast<float>(i) / static_cast<float>(g.steps));
    spec.schedule.timesteps.assign(static_cast<std::size_t>(g.steps), 0.0f);
    for (std::int64_t k = 0; k < g.trained; ++k) spec.trained_steps.push_back(static_cast<int>(k));
    Workspace room("group");
    const auto timed = [](const auto& call) {
        device_memory().synchronise();
        const auto begin = std::chrono::steady_clock::now();
        call();
        device_memory().synchronise();
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    };
    struct Seconds {
        double sampling = 1e30, training = 1e30;
    };
    /// Groups that make `members` together, each with a prefix of its own; the faster of two runs behind a first one.
    const auto measure = [&](std::int64_t groups) {
        spec.members = static_cast<int>(g.members / groups);
        spec.micro_batch = static_cast<int>(std::min(g.micro_batch, g.members / groups));
        std::vector<RandomKey> keys;
        for (int i = 0; i < spec.members; ++i) keys.push_back(flow::sample_noise_key(1, 2, 3, static_cast<std::uint64_t>(i)));
        std::vector<double> advantage(keys.size());
        for (std::size_t i = 0; i < advantage.size(); ++i) advantage[i] = i % 2 == 0 ? 1.0 : -1.0;
        Seconds best;
        for (int run = 0; run < 3; ++run) {
            rl::GroupTrajectory t;
            const double sampling = timed([&] {
                for (std::int64_t i = 0; i < groups; ++i)
                    t = room.build([&](Arena& arena) { return rl::GroupPolicy(model, weights, prompt, nullptr, spec, dit::Keep::nothing, arena); })
                            .sample(keys);
            });
            const double training = timed([&] {
                for (std::int64_t i = 0; i < groups; ++i)
                    room.build([&](Arena& arena) { return rl::GroupPolicy(model, weights, prompt, nullptr, spec, dit::Keep::inputs, arena); })
                        .train({}, t, advantage, 1.0, gradients);
            });
            if (run > 0) best = {std::min(best.sampling, sampling), std::min(best.training, training)};
        }
        return best;
    };
    const Seconds shared = measure(1);
    const auto update = [&] {
        const DeviceScope scope(Device::cuda);
        const double squares = norm.sum_of_squares({gradients.data(), static_cast<std::size_t>(size)});
        state.each_piece([&](std::int64_t first, const std::vector<Tensor>& there) {
            const std::int64_t count = there[0].elements();
            const auto part = [&](const Tensor& t, std::int64_t at) { return std::span(t.f32() + at, static_cast<std::size_t>(count)); };
            const optim::ParameterRange all{0, count, true};
            optim::adamw_step({}, 1e-9, 1, optim::clip_scale(std::sqrt(squares), 1.0), {&all, 1}, part(gradients.flat(), first),
                              part(weights.flat(), first), part(there[0], 0), part(there[1], 0));
        });
    };
    timed(update);
    const double updating = std::min(timed(update), timed(update));
    const std::string name = fmt::format("group of {} at {} x {} tokens{}, {} blocks of width {}", g.members, grid.height, grid.width,
                                         g.reference_side > 0 ? fmt::format(" with a reference of {} x {}", g.reference_side, g.reference_side) : "",
                                         layers, config.width());
    result(fmt::format("{}: sampling {} steps", name, g.steps), shared.sampling, "s");
    result(fmt::format("{}: training {} steps", name, g.trained), shared.training, "s");
    result(name + ": update, AdamW's memory on the host", updating, "s");
    const double scale = static_cast<double>(g.all_layers) / static_cast<double>(layers);
    result(fmt::format("{}: images a second of sampling, training and update, {}", name,
                       scale == 1 ? "measured" : fmt::format("scaled to {} blocks", g.all_layers)),
           static_cast<double>(g.members) / (scale * (shared.sampling + shared.training + updating)), "1/s");
    if (g.reference_side > 0) {
        const Seconds alone = measure(g.members);
        result(name + ": training with a prefix a member over training with one", alone.training / shared.training, "times");
        result(name + ": sampling with a prefix a member over sampling with one", alone.sampling / shared.sampling, "times");
    }
    ops::backend().keep_bf16_copy(weights.data(), 0);
}

int run(comm::Communicator&, int argc, char** argv) {
    const std::vector<std::string> words(argv + 1, argv + argc);
    const auto number = [&](std::size_t i) {
        ATELIER_CHECK_USAGE(i < words.size(), "too few arguments");
        return static_cast<std::int64_t>(std::atoll(words[i].c_str()));
    };
    ATELIER_CHECK_USAGE(!words.empty(), "what to time: kernels, products, copy, dit or group");
    fmt::print("device: {}\n", ops::load_backend().device_name);
    if (words[0] == "kernels") bench_kernels(number(1), number(2));
    else if (words[0] == "products") bench_products();
    else if (words[0] == "copy") bench_copy(number(1));
    else if (words[0] == "dit") bench_dit(number(1), number(2), number(3), {number(4), number(5)}, number(6), words.back() == "train");
    else if (words[0] == "group")
        bench_group(number(1), number(2), number(3), {number(4), number(5)}, {number(6), number(7), number(8), number(9), number(10), number(11)});
    else ATELIER_FAIL(ErrorKind::usage, "nothing to time is called {}", words[0]);
    return 0;
}

}  // namespace

int main(int argc, char** argv) { return comm::run_main(argc, argv, "device_bench", run); }
