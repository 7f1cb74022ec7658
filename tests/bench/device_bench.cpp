// Times of the device's kernels, of products and of the transformer, as lines "result: NAME = VALUE UNIT". By tests/gpu/run.sh.
//   device_bench kernels ROWS WIDTH | products | copy MIB | dit LAYERS HEADS HEAD_DIM TOKENS_HIGH TOKENS_WIDE BATCH forward|train
#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <functional>

#include "comm/run_main.hpp"
#include "core/philox.hpp"
#include "model/dit/dit.hpp"
#include "ops/backend.hpp"

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
        Tensor a, b, c, d, e, row1, row2, scale, qkv, qkv_out, cosine, sine, room;
    };
    const ops::QkNormRopeShape rope{rows, heads, head_dim, rows, 1e-6f};
    const DeviceScope scope(Device::cuda);
    const Buffers s = workspace.build([&](Arena& arena) {
        Buffers b;
        for (Tensor* t : {&b.a, &b.b, &b.c, &b.d, &b.e}) *t = numbers(arena, n);
        for (Tensor* t : {&b.row1, &b.row2}) *t = numbers(arena, rows * 2 * heads);
        b.scale = numbers(arena, 4 * width);
        for (Tensor* t : {&b.qkv, &b.qkv_out}) *t = numbers(arena, 3 * n);
        for (Tensor* t : {&b.cosine, &b.sine}) *t = numbers(arena, rows * head_dim / 2);
        b.room = numbers(arena, ops::qk_norm_rope_workspace(rope));
        return b;
    });
    const auto f = [](const Tensor& t) { return t.f32(); };
    const ops::ModulationShape m{1, rows, width, 4 * width, 1e-6f};
    const double one = 4.0 * static_cast<double>(n);
    auto* bits = static_cast<std::uint16_t*>(s.e.raw());
    const ops::Backend& device = ops::backend();
    const std::vector<Kernel> kernels{
        {"layer_norm_modulate", 2 * one, [&] { ops::layer_norm_modulate(m, f(s.a), f(s.scale), f(s.b), f(s.row1), f(s.row2)); }},
        {"layer_norm_modulate_backward", 4 * one,
         [&] { ops::layer_norm_modulate_backward(m, f(s.a), f(s.scale), f(s.row1), f(s.row2), f(s.b), f(s.c), f(s.scale) + width); }},
        {"gate_residual", 3 * one, [&] { ops::gate_residual(m, f(s.a), f(s.scale), f(s.b), f(s.c)); }},
        {"gate_residual_backward", 3 * one,
         [&] { ops::gate_residual_backward(m, f(s.scale), f(s.a), f(s.b), f(s.c), f(s.scale) + width); }},
        {"qk_norm_rope", 6 * one,
         [&] { ops::qk_norm_rope(rope, f(s.qkv), f(s.scale), f(s.scale) + head_dim, f(s.cosine), f(s.sine), f(s.qkv_out), f(s.row1)); }},
        {"qk_norm_rope_backward", 6 * one,
         [&] {
             ops::qk_norm_rope_backward(rope, f(s.qkv), f(s.scale), f(s.scale) + head_dim, f(s.cosine), f(s.sine), f(s.row1), f(s.qkv_out),
                                        f(s.scale) + width, f(s.scale) + 2 * width, f(s.room));
         }},
        {"swiglu", 3 * one, [&] { ops::swiglu(rows, width, f(s.qkv), f(s.qkv) + width, 3 * width, f(s.a)); }},
        {"swiglu_backward", 5 * one,
         [&] { ops::swiglu_backward(rows, width, f(s.qkv), f(s.qkv) + width, 3 * width, f(s.a), f(s.qkv_out), f(s.qkv_out) + width); }},
        {"gelu_tanh", 2 * one, [&] { ops::gelu_tanh(f(s.a), f(s.b), n); }},
        {"rms_norm", 2 * one, [&] { ops::rms_norm({rows, width, 0, 0, 1e-6f, 1}, f(s.a), f(s.scale), f(s.b), f(s.row1)); }},
        {"to_bf16", 1.5 * one, [&] { device.to_bf16(rows, width, f(s.a), width, bits, width); }},
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

void bench_dit(std::int64_t layers, std::int64_t heads, std::int64_t head_dim, dit::Grid grid, std::int64_t batch, bool trains) {
    dit::Config config;
    config.layers = layers;
    config.heads = heads;
    config.head_dim = head_dim;
    config.rope_dims = {head_dim / 8, head_dim / 16 * 7, head_dim / 16 * 7};
    config.context_dim = config.width();
    const dit::Dit model(config, Device::cuda);
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
    Workspace series("series");
    const Tensor some = series.build([&](Arena& arena) { return numbers(arena, 1 << 22); });
    for (const Tensor& t : {r.weights.flat(), r.states.reshaped({r.states.elements()}), r.latents.reshaped({r.latents.elements()})})
        for (std::int64_t at = 0; at < t.elements(); at += some.elements()) {
            const std::int64_t n = std::min(some.elements(), t.elements() - at);
            transfer(some.slice(0, n), t.slice(at, at + n));
        }
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

int run(comm::Communicator&, int argc, char** argv) {
    const std::vector<std::string> words(argv + 1, argv + argc);
    const auto number = [&](std::size_t i) {
        ATELIER_CHECK_USAGE(i < words.size(), "too few arguments");
        return static_cast<std::int64_t>(std::atoll(words[i].c_str()));
    };
    ATELIER_CHECK_USAGE(!words.empty(), "what to time: kernels, products, copy or dit");
    fmt::print("device: {}\n", ops::load_backend().device_name);
    if (words[0] == "kernels") bench_kernels(number(1), number(2));
    else if (words[0] == "products") bench_products();
    else if (words[0] == "copy") bench_copy(number(1));
    else if (words[0] == "dit") bench_dit(number(1), number(2), number(3), {number(4), number(5)}, number(6), words.back() == "train");
    else ATELIER_FAIL(ErrorKind::usage, "nothing to time is called {}", words[0]);
    return 0;
}

}  // namespace

int main(int argc, char** argv) { return comm::run_main(argc, argv, "device_bench", run); }
