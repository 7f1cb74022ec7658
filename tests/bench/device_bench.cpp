// Times of the device's kernels, of products and of the transformer, as lines "result: NAME = VALUE UNIT". By tests/gpu/run.sh.
//   device_bench kernels ROWS WIDTH | products SIZE WIDTH ROWS... | copy MIB | plans HEADS HEAD_DIM QUERIES | decode|encode TOKENS_HIGH TOKENS_WIDE [BASE_DIM] |
//   dit LAYERS HEADS HEAD_DIM TOKENS_HIGH TOKENS_WIDE BATCH forward|train [RECOMPUTE (compute.recompute's value; selective and full without)] |
//   group LAYERS HEADS HEAD_DIM TOKENS_HIGH TOKENS_WIDE MEMBERS MICRO_BATCH STEPS TRAINED REFERENCE_SIDE(0: none) ALL_LAYERS
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <thread>

#include "comm/run_main.hpp"
#include "core/host_vectors.hpp"
#include "core/parallel.hpp"
#include "core/philox.hpp"
#include "flow/noise.hpp"
#include "model/dit/dit.hpp"
#include "model/vae/vae.hpp"
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

/// Of one call.
double once(const std::function<void()>& call) {
    device_memory().synchronise();
    const auto begin = std::chrono::steady_clock::now();
    call();
    device_memory().synchronise();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
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
    auto* other_qkv = static_cast<std::uint16_t*>(s.qkv.raw());
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
        {"gate_residual_backward of bf16 to bf16", 2 * one,
         [&] { ops::gate_residual_backward(m, f(s.scale), qkv_bits, f(s.b), bits, f(s.scale) + width); }},
        {"swiglu_backward of bf16 to bf16", 2.5 * one,
         [&] { ops::swiglu_backward(rows, width, qkv_bits, qkv_bits + width, 3 * width, bits, other_qkv, other_qkv + width); }},
        {"qk_norm_rope_backward of bf16 to bf16", 5.5 * one,
         [&] {
             ops::qk_norm_rope_backward(rope, qkv_bits, f(s.scale), f(s.scale) + head_dim, f(s.cosine), f(s.sine), f(s.row1), f(s.qkv_out), other_qkv,
                                        f(s.scale) + width, f(s.scale) + 2 * width, f(s.room));
         }},
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

/// A square one of `size`, and a block's with activations of `width` as the transformer has them: all operands and the result in bf16.
void bench_products(std::int64_t size, std::int64_t width, std::span<const std::int64_t> rows_of) {
    Workspace workspace("products");
    const DeviceScope scope(Device::cuda);
    const auto [a, b, c] = workspace.build([&](Arena& arena) {
        return std::tuple(numbers(arena, size * size).reshaped({size, size}), numbers(arena, size * size).reshaped({size, size}),
                          arena.take_f32({size, size}, Device::cuda));
    });
    ops::backend().keep_bf16_copy(a.f32(), size * size);
    ops::backend().keep_bf16_copy(b.f32(), size * size);
    const double flop = 2.0 * size * size * size;
    result(fmt::format("bf16 product {}^3, operands kept in bf16", size), flop / seconds([&] { ops::linear(a, b, {}, c); }, 0.05) / 1e12, "TFLOP/s");
    ops::backend().keep_bf16_copy(a.f32(), 0);
    result(fmt::format("bf16 product {}^3, one operand rounded first", size), flop / seconds([&] { ops::linear(a, b, {}, c); }, 0.05) / 1e12, "TFLOP/s");
    ops::backend().keep_bf16_copy(b.f32(), 0);
    for (const std::int64_t rows : rows_of)
        for (const auto& [what, in, out] : {std::tuple{"q, k and v", width, 3 * width}, {"out", width, width}, {"value and gate", width, 6 * width},
                                            {"down", 3 * width, width}}) {
            Workspace room("products of a block");
            const auto rounded = [&](Arena& arena, std::int64_t high, std::int64_t wide) {
                const Tensor from = numbers(arena, high * wide), bits = arena.take(DType::bf16, {high, wide}, Device::cuda);
                if (!arena.is_measuring()) ops::copy_columns(high, wide, from.f32(), wide, bits, wide);
                return bits;
            };
            const auto [x, w, y] = room.build([&, in = in, out = out](Arena& arena) {
                return std::tuple(rounded(arena, rows, in), rounded(arena, out, in), arena.take(DType::bf16, {rows, out}, Device::cuda));
            });
            const double time = seconds([&x = x, &w = w, &y = y] { ops::linear(x, w, {}, y); }, 0.05);
            result(fmt::format("bf16 product of {} rows, {} ({} -> {}), rounded", rows, what, in, out), 2.0 * static_cast<double>(rows * in * out) / time / 1e12,
                   "TFLOP/s");
        }
}

/// The first call with a number of keys makes the library's plan; of five numbers.
void bench_plans(std::int64_t heads, std::int64_t head_dim, std::int64_t queries) {
    const std::int64_t width = heads * head_dim, shared = 100, numbers_of_keys = 5;
    ops::AttentionShape s;
    s.queries = s.own_keys = queries, s.heads = s.kv_heads = heads, s.head_dim = head_dim;
    s.q_stride = s.own_stride = 3 * width, s.shared_stride = 2 * width, s.out_stride = width;
    s.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
    s.shared_keys = shared + numbers_of_keys;
    const DeviceScope scope(Device::cuda);
    Workspace room("attention");
    struct Buffers {
        Tensor qkv, keys, out, log_sum_exp, d_out, d_qkv, d_keys, workspace;
    };
    const Buffers b = room.build([&](Arena& arena) {
        const auto zeros = [&](std::int64_t n) { return arena.take(DType::bf16, {n}, Device::cuda); };
        const auto floats = [&](std::int64_t n) { return arena.take_f32({n}, Device::cuda); };
        return Buffers{zeros(queries * 3 * width), zeros(s.shared_keys * 2 * width), zeros(queries * width), floats(heads * queries), zeros(queries * width),
                       floats(queries * 3 * width), floats(s.shared_keys * 2 * width), floats(ops::attention_backward_workspace(s))};
    });
    const ops::Operand qkv = b.qkv, keys = b.keys;
    const auto forward = [&] {
        ops::attention(s, qkv, {keys, keys.from(width)}, {qkv.from(width), qkv.from(2 * width)}, b.out, b.log_sum_exp.f32(), b.workspace);
    };
    const auto backward = [&] {
        ops::attention_backward(s, qkv, {keys, keys.from(width)}, {qkv.from(width), qkv.from(2 * width)}, b.out, b.log_sum_exp.f32(), b.d_out, b.d_qkv.f32(),
                                {b.d_keys.f32(), b.d_keys.f32() + width}, {b.d_qkv.f32() + width, b.d_qkv.f32() + 2 * width}, b.workspace);
    };
    double first[2] = {}, second[2] = {};
    forward(), backward();  // the library itself starts
    for (s.shared_keys = shared; s.shared_keys < shared + numbers_of_keys; ++s.shared_keys) {
        first[0] += once(forward), second[0] += once(forward);
        first[1] += once(backward), second[1] += once(backward);
    }
    for (const int i : {0, 1}) {
        const std::string name = fmt::format("attention of {} x {} queries{}", heads, queries, i == 0 ? "" : ", gradient");
        result(name + ", first call with a number of keys", 1e3 * first[i] / static_cast<double>(numbers_of_keys), "ms");
        result(name + ", second call", 1e3 * second[i] / static_cast<double>(numbers_of_keys), "ms");
    }
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

/// Qwen-Image 2.1's autoencoder, or a narrower one of its kind.
vae::Config autoencoder_config(std::int64_t base) {
    vae::Config config;
    config.decoder_base = base;
    config.multipliers = {1, 2, 4, 8, 8};
    config.temporal_down = {false, true, true, true};
    config.latents_mean.assign(static_cast<std::size_t>(config.z), 0.0f);
    config.latents_std.assign(static_cast<std::size_t>(config.z), 1.0f);
    config.base = base * 2 / 3;
    return config;
}

struct Autoencoder {
    explicit Autoencoder(const vae::Config& config) : model(config, Device::cuda) { fill({weights.flat()}); }
    vae::Vae model;
    Workspace room{"weights"};
    nn::ParameterStore weights = room.build([this](Arena& arena) { return nn::ParameterStore(model.table(), arena, Device::cuda); });
    vae::Codec codec{model, weights};
};

/// A picture encoded to its posterior, pixels and numbers in host memory.
void bench_encode(dit::Grid grid, std::int64_t base) {
    const vae::Config config = autoencoder_config(base);
    Autoencoder a(config);
    const std::int64_t height = grid.height * config.factor(), width = grid.width * config.factor();
    const std::vector<float> picture(static_cast<std::size_t>(height * width * config.channels), 0.02f);
    std::vector<float> posterior(static_cast<std::size_t>(grid.tokens() * 2 * config.z));
    const double time = seconds([&] { a.codec.encode_raw(picture.data(), height, width, posterior.data()); }, 0.2);
    result(fmt::format("a picture of {} x {} encoded, fp32", height, width), 1e3 * time, "ms");
}

/// A picture decoded, latents and pixels in host memory.
void bench_decode(dit::Grid grid, std::int64_t base) {
    const vae::Config config = autoencoder_config(base);
    Autoencoder autoencoder(config);
    const vae::Vae& model = autoencoder.model;
    vae::Codec& codec = autoencoder.codec;
    const std::int64_t height = grid.height * config.factor(), width = grid.width * config.factor();
    codec.reserve({height, width, 1});
    std::vector<float> latents(static_cast<std::size_t>(grid.tokens() * config.z), 0.02f);
    std::vector<float> picture(static_cast<std::size_t>(height * width * config.channels));

    double pixels = static_cast<double>(grid.tokens()), flop = 0;
    const auto convolution = [&](const vae::ConvRows& rows) {
        if (rows.weight >= 0) flop += 2 * pixels * static_cast<double>(model.table().spec(rows.weight).shape.elements());
    };
    const auto residual = [&](const vae::ResidualRows& r) {
        for (const vae::ConvRows& rows : {r.conv1, r.conv2, r.shortcut}) convolution(rows);
    };
    const vae::HalfRows& decoder = model.decoder;
    for (const vae::ConvRows& rows : {model.post_quant, decoder.conv_in, decoder.mid.attention.qkv, decoder.mid.attention.proj}) convolution(rows);
    for (const vae::ResidualRows& r : {decoder.mid.first, decoder.mid.last}) residual(r);
    flop += 4 * pixels * pixels * static_cast<double>(config.decoder_base * config.multipliers.back());
    for (const vae::LevelRows& level : decoder.levels) {
        for (const vae::ResidualRows& r : level.residuals) residual(r);
        if (!level.resamples) continue;
        pixels *= 4;
        convolution(level.resample);
    }
    convolution(decoder.conv_out);

    const double time = seconds(
        [&] {
            codec.decode(Tensor::of(latents.data(), {1, grid.tokens(), config.z}), grid.height, grid.width,
                         Tensor::of(picture.data(), {1, height * width, config.channels}));
        },
        0.2);
    const std::string name = fmt::format("a picture of {} x {} decoded, fp32", height, width);
    result(name, 1e3 * time, "ms");
    result(name, flop / time / 1e12, "TFLOP/s");
}

dit::Keep kept_with(const std::string& recompute) {
    if (recompute == "none") return dit::Keep::activations;
    if (recompute == "elementwise") return dit::Keep::products;
    if (recompute == "selective") return dit::Keep::branches;
    ATELIER_CHECK_USAGE(recompute == "full", "compute.recompute has no value \"{}\"", recompute);
    return dit::Keep::inputs;
}
std::string recompute_name(dit::Keep keep) {
    for (const char* name : {"none", "elementwise", "selective"})
        if (kept_with(name) == keep) return name;
    return "full";
}

void bench_dit(std::int64_t layers, std::int64_t heads, std::int64_t head_dim, dit::Grid grid, std::int64_t batch, dit::Keep keep) {
    const bool trains = keep != dit::Keep::nothing;
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
                                         trains ? fmt::format("forward + backward, {} recompute (not counted)", recompute_name(keep))
                                                : std::string("forward"));
    result(name, 1e3 * time, "ms");
    result(name, forward_flop * (trains ? 3 : 1) / time / 1e12, "TFLOP/s");
    ops::backend().keep_bf16_copy(r.weights.data(), 0);
}

struct GroupSizes {
    std::int64_t members, micro_batch, steps, trained, reference_side, all_layers;
};

/// One group's part of a GRPO iteration, without guidance: sampled, trained on some of its steps (selective recompute: forward passes
/// repeated), and an update of all weights with AdamW's memory in host memory. `all_layers`: what times are scaled to.
void bench_group(std::int64_t layers, std::int64_t heads, std::int64_t head_dim, dit::Grid grid, const GroupSizes& g) {
    const dit::Config config = sizes(layers, heads, head_dim);
    const dit::Dit model(config, Device::cuda, ops::ProductPrecision::bf16);
    pipeline::EncodedPrompt prompt;
    const std::int64_t slots = g.reference_side * g.reference_side / 4;
    prompt.image_slot.resize(static_cast<std::size_t>(128 + slots));
    std::fill_n(prompt.image_slot.begin() + 64, slots, std::uint8_t{1});  // a template's text stands before a reference
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

    rl::SamplingSpec whole;
    whole.target = grid;
    for (std::int64_t i = 0; i <= g.steps; ++i) whole.schedule.sigmas.push_back(1.0f - static_cast<float>(i) / static_cast<float>(g.steps));
    whole.schedule.timesteps.assign(static_cast<std::size_t>(g.steps), 0.0f);
    for (std::int64_t k = 0; k < g.trained; ++k) whole.trained_steps.push_back(static_cast<int>(k));
    Workspace room("group");
    struct Seconds {
        double sampling = 1e30, training = 1e30;
    };
    enum class Prefix { of_all, of_member, of_pass };
    /// All members behind one prefix, each behind its own, or one run of it for every step of every member; the faster of two runs behind a first one.
    const auto measure = [&](Prefix prefix) {
        const bool shares = prefix == Prefix::of_all, each_step = prefix == Prefix::of_pass;
        const std::int64_t groups = shares ? 1 : g.members;
        rl::SamplingSpec spec = whole;
        spec.members = static_cast<int>(g.members / groups);
        spec.micro_batch = shares ? static_cast<int>(g.micro_batch) : 1;
        if (each_step) {
            spec.schedule.sigmas.resize(2);
            spec.schedule.timesteps.resize(1);
            spec.trained_steps = {0};
        }
        std::vector<RandomKey> keys;
        for (int i = 0; i < spec.members; ++i) keys.push_back(flow::sample_noise_key(1, 2, 3, static_cast<std::uint64_t>(i)));
        std::vector<double> advantage(keys.size());
        for (std::size_t i = 0; i < advantage.size(); ++i) advantage[i] = i % 2 == 0 ? 1.0 : -1.0;
        Seconds best;
        for (int run = 0; run < 3; ++run) {
            rl::GroupTrajectory t;
            const double sampling = once([&] {
                for (std::int64_t i = 0; i < groups * (each_step ? g.steps : 1); ++i)
                    t = room.build([&](Arena& arena) { return rl::GroupPolicy(model, weights, prompt, nullptr, spec, dit::Keep::nothing, arena); })
                            .sample(keys);
            });
            const double training = once([&] {
                for (std::int64_t i = 0; i < groups * (each_step ? g.trained : 1); ++i)
                    room.build([&](Arena& arena) { return rl::GroupPolicy(model, weights, prompt, nullptr, spec, dit::Keep::branches, arena); })
                        .train({}, t, advantage, 1.0, gradients);
            });
            if (run > 0) best = {std::min(best.sampling, sampling), std::min(best.training, training)};
        }
        return best;
    };
    const Seconds shared = measure(Prefix::of_all);
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
    once(update);
    const double updating = std::min(once(update), once(update));
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
        for (const auto& [prefix, each] : {std::pair{Prefix::of_member, "member"}, {Prefix::of_pass, "member and step"}}) {
            const Seconds alone = measure(prefix);
            result(fmt::format("{}: training with a prefix a {} over training with one", name, each), alone.training / shared.training, "times");
            result(fmt::format("{}: sampling with a prefix a {} over sampling with one", name, each), alone.sampling / shared.sampling, "times");
        }
    }
    ops::backend().keep_bf16_copy(weights.data(), 0);
}

int run(comm::Communicator&, int argc, char** argv) {
    const std::vector<std::string> words(argv + 1, argv + argc);
    const auto number = [&](std::size_t i) {
        ATELIER_CHECK_USAGE(i < words.size(), "too few arguments");
        return static_cast<std::int64_t>(std::atoll(words[i].c_str()));
    };
    ATELIER_CHECK_USAGE(!words.empty(), "what to time: kernels, products, copy, plans, decode, encode, dit or group");
    set_threads(static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, 16u)));  // which draw a group's noise
    fmt::print("device: {}\n", ops::load_backend().device_name);
    if (words[0] == "kernels") bench_kernels(number(1), number(2));
    else if (words[0] == "products") {
        std::vector<std::int64_t> rows;
        for (std::size_t i = 3; i < words.size(); ++i) rows.push_back(number(i));
        bench_products(number(1), number(2), rows);
    } else if (words[0] == "plans") bench_plans(number(1), number(2), number(3));
    else if (words[0] == "decode") bench_decode({number(1), number(2)}, words.size() > 3 ? number(3) : 144);
    else if (words[0] == "encode") bench_encode({number(1), number(2)}, words.size() > 3 ? number(3) : 144);
    else if (words[0] == "copy") bench_copy(number(1));
    else if (words[0] == "dit") {
        ATELIER_CHECK_USAGE(words.size() == 8 || (words.size() == 9 && words[7] == "train"), "dit needs six numbers, then forward, or train and what is made again");
        std::vector keeps{dit::Keep::nothing};
        if (words[7] == "train") keeps = words.size() > 8 ? std::vector{kept_with(words[8])} : std::vector{dit::Keep::products, dit::Keep::branches, dit::Keep::inputs};
        for (const dit::Keep keep : keeps)
            bench_dit(number(1), number(2), number(3), {number(4), number(5)}, number(6), keep);
    }
    else if (words[0] == "group")
        bench_group(number(1), number(2), number(3), {number(4), number(5)}, {number(6), number(7), number(8), number(9), number(10), number(11)});
    else ATELIER_FAIL(ErrorKind::usage, "nothing to time is called {}", words[0]);
    result("device memory that the program took, with scratch memory and workspaces", static_cast<double>(device_memory().peak_bytes()) / (1 << 20), "MiB");
    return 0;
}

}  // namespace

int main(int argc, char** argv) { return comm::run_main(argc, argv, "device_bench", run); }
