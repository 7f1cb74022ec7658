// The operations of a transformer's training step, each beside its two floors: FLOPs over the product peak and bytes over the memory
// bandwidth, both measured at the start. Counter `floor` is the larger floor's share of the time: 1 is as fast as this machine can be.
// Where products run on AMX their peak is that of its tiles, a sixth of it in fp32 (three bf16 parts); attention's is that of fused multiply-adds.
//   ops_bench [--benchmark_filter=…]      ATELIER_THREADS: threads (default 1)
// Shapes: the miniature with a group of 8 on 64 tokens (W = 192), and the mid-size transformer at 512 x 512 (W = 1536, 1024 tokens).
#include <benchmark/benchmark.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "core/parallel.hpp"
#include "ops/activation.hpp"
#include "ops/attention.hpp"
#include "ops/cpu/amx_block.hpp"
#include "ops/linear.hpp"
#include "ops/modulation.hpp"
#include "ops/precision.hpp"
#include "ops/rope.hpp"
#include "optim/adamw.hpp"
#if ATELIER_HAS_AMX
#include <immintrin.h>
#endif

namespace {

using namespace atelier;

struct Peaks {
    double flops = 0;  ///< FLOP a second of fused multiply-adds
    double tiles = 0;  ///< of AMX's tiles, where there are any
    double bytes = 0;  ///< bytes a second from and to memory
    /// Of products with a weight.
    double products(ops::ProductPrecision precision) const {
        return tiles == 0 ? flops : precision == ops::ProductPrecision::bf16 ? tiles : tiles / 6;
    }
};

template <typename Work>
double fastest(int times, Work&& work) {
    double best = 1e30;
    for (int i = 0; i < times; ++i) {
        const auto begin = std::chrono::steady_clock::now();
        work();
        best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    }
    return best;
}

/// FLOP a second of four sums of tiles, on every thread; 0 without AMX.
double flops_of_tiles() {
#if ATELIER_HAS_AMX
    if (!ops::cpu::has_amx()) return 0;
    const std::int64_t rounds = 1'000'000;
    const double seconds = fastest(5, [&] {
        parallel_for(threads(), 1, [&](std::int64_t begin, std::int64_t end) {
            const ops::cpu::BlockScope scope;
            for (std::int64_t i = 0; i < rounds * (end - begin); ++i) {
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
        });
    });
    return static_cast<double>(threads() * rounds) * 4 * 2 * 16 * 16 * 32 / seconds;
#else
    return 0;
#endif
}

const Peaks& peaks() {
    static const Peaks found = [] {
        Peaks p;
        // Independent chains of fused multiply-adds in registers, on every thread.
#if defined(__AVX512F__)
        const std::int64_t rounds = 4'000'000, lanes = 192;  // twelve chains
#else
        const std::int64_t rounds = 4'000'000, lanes = 96;
#endif
        const double seconds = fastest(5, [&] {
            parallel_for(threads(), 1, [&](std::int64_t begin, std::int64_t end) {
                for (std::int64_t t = begin; t < end; ++t) {
                    alignas(64) float x[lanes];
                    for (float& v : x) v = 1.0f;
                    for (std::int64_t i = 0; i < rounds; ++i)
                        for (float& v : x) v = std::fma(v, 0.999f, 0.001f);
                    benchmark::DoNotOptimize(x);
                }
            });
        });
        p.flops = static_cast<double>(threads()) * 2.0 * lanes * static_cast<double>(rounds) / seconds;
        p.tiles = flops_of_tiles();
        std::vector<float> a(std::size_t{1} << 26), b(a.size(), 1.0f);
        const double copying = fastest(5, [&] {
            parallel_for(static_cast<std::int64_t>(a.size()), 1 << 16, [&](std::int64_t begin, std::int64_t end) {
                for (std::int64_t i = begin; i < end; ++i) a[static_cast<std::size_t>(i)] = 0.5f * b[static_cast<std::size_t>(i)];
            });
        });
        p.bytes = 12.0 * static_cast<double>(a.size()) / copying;  // read, and write with its read for ownership
        return p;
    }();
    return found;
}

void report(benchmark::State& state, double flops, double bytes, double peak = peaks().flops) {
    const double n = static_cast<double>(state.iterations());
    state.counters["GFLOP/s"] = benchmark::Counter(flops * n / 1e9, benchmark::Counter::kIsRate);
    state.counters["GB/s"] = benchmark::Counter(bytes * n / 1e9, benchmark::Counter::kIsRate);
    state.counters["floor"] = benchmark::Counter(n * std::max(flops / peak, bytes / peaks().bytes), benchmark::Counter::kIsRate);
}

struct Size {
    std::int64_t batch, tokens, prefix, width, head_dim;
    std::int64_t rows() const { return batch * tokens; }
};
constexpr Size sizes[] = {{8, 64, 32, 192, 32}, {1, 1024, 64, 1536, 128}};
const Size& size_of(const benchmark::State& state) { return sizes[state.range(0)]; }

std::vector<float> numbers(std::int64_t n) {
    std::vector<float> x(static_cast<std::size_t>(n));
    std::uint32_t bits = 1;
    for (float& v : x) v = static_cast<float>((bits = bits * 1664525u + 1013904223u) >> 8) / 16777216.0f - 0.5f;
    return x;
}
Tensor matrix(const std::vector<float>& x, std::int64_t rows, std::int64_t cols) { return Tensor::of(x.data(), {rows, cols}); }
constexpr double word = sizeof(float);

ops::ProductPrecision precision_of(const benchmark::State& state) { return state.range(2) == 0 ? ops::ProductPrecision::fp32 : ops::ProductPrecision::bf16; }

/// in -> out as q, k, v (3), the attention's output (1) or SwiGLU's two halves (6) are.
void linear(benchmark::State& state) {
    const ops::PrecisionScope precision(precision_of(state));
    const std::int64_t m = size_of(state).rows(), k = size_of(state).width, n = k * state.range(1);
    const auto x = numbers(m * k), w = numbers(n * k), y = numbers(m * n);
    for (auto _ : state) ops::linear(matrix(x, m, k), matrix(w, n, k), {}, matrix(y, m, n));
    report(state, 2.0 * double(m * n * k), word * double(m * k + n * k + m * n), peaks().products(precision_of(state)));
}
void linear_backward_input(benchmark::State& state) {
    const ops::PrecisionScope precision(precision_of(state));
    const std::int64_t m = size_of(state).rows(), k = size_of(state).width, n = k * state.range(1);
    const auto dx = numbers(m * k), w = numbers(n * k), dy = numbers(m * n);
    for (auto _ : state) ops::linear_backward_input(matrix(dy, m, n), matrix(w, n, k), matrix(dx, m, k), false);
    report(state, 2.0 * double(m * n * k), word * double(m * k + n * k + m * n), peaks().products(precision_of(state)));
}
void linear_backward_weight(benchmark::State& state) {
    const ops::PrecisionScope precision(precision_of(state));
    const std::int64_t m = size_of(state).rows(), k = size_of(state).width, n = k * state.range(1);
    const auto x = numbers(m * k), dw = numbers(n * k), dy = numbers(m * n);
    for (auto _ : state) ops::linear_backward_weight(matrix(dy, m, n), matrix(x, m, k), matrix(dw, n, k), {});
    report(state, 2.0 * double(m * n * k), word * double(m * k + 2 * n * k + m * n), peaks().products(precision_of(state)));
}

void attention(benchmark::State& state) {
    const Size& s = size_of(state);
    const ops::PrecisionScope precision(precision_of(state));
    const bool backward = state.range(1) != 0;
    const std::int64_t w = s.width;
    ops::AttentionShape a;
    a.batch = s.batch, a.queries = a.own_keys = s.tokens, a.shared_keys = s.prefix, a.heads = a.kv_heads = w / s.head_dim, a.head_dim = s.head_dim;
    a.q_stride = a.own_stride = 3 * w, a.shared_stride = 2 * w, a.out_stride = w;
    a.scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim));
    auto qkv = numbers(s.rows() * 3 * w), prefix = numbers(s.prefix * 2 * w), out = numbers(s.rows() * w), sums = numbers(s.rows() * a.heads);
    auto d_qkv = numbers(s.rows() * 3 * w), d_prefix = numbers(s.prefix * 2 * w), d_out = numbers(s.rows() * w);
    const auto room = numbers(ops::attention_backward_workspace(a));
    const Tensor workspace = Tensor::of(room.data(), {static_cast<std::int64_t>(room.size())});
    const ops::AttentionKeys shared{prefix.data(), prefix.data() + w}, own{qkv.data() + w, qkv.data() + 2 * w};
    ops::attention(a, qkv.data(), shared, own, out.data(), sums.data(), workspace);
    for (auto _ : state) {
        if (backward)
            ops::attention_backward(a, qkv.data(), shared, own, out.data(), sums.data(), d_out.data(), d_qkv.data(),
                                    {d_prefix.data(), d_prefix.data() + w}, {d_qkv.data() + w, d_qkv.data() + 2 * w}, workspace);
        else
            ops::attention(a, qkv.data(), shared, own, out.data(), sums.data(), workspace);
    }
    const double pairs = double(s.rows()) * double(s.prefix + s.tokens) * double(w);
    report(state, (backward ? 10.0 : 4.0) * pairs, word * double(s.rows() * w) * (backward ? 8 : 4));
}

void swiglu(benchmark::State& state) {
    const std::int64_t m = size_of(state).rows(), w = 3 * size_of(state).width;
    const auto both = numbers(m * 2 * w);
    auto out = numbers(m * w), d_both = numbers(m * 2 * w);
    const bool backward = state.range(1) != 0;
    for (auto _ : state) {
        if (backward) ops::swiglu_backward(m, w, both.data() + w, both.data(), 2 * w, out.data(), d_both.data() + w, d_both.data());
        else ops::swiglu(m, w, both.data() + w, both.data(), 2 * w, out.data());
    }
    report(state, 0, word * double(m * w) * (backward ? 5 : 3));
}

void norm_modulate(benchmark::State& state) {
    const Size& s = size_of(state);
    const ops::ModulationShape shape{s.batch, s.tokens, s.width, 4 * s.width};
    const auto x = numbers(s.rows() * s.width), scale = numbers(s.batch * 4 * s.width);
    auto y = numbers(s.rows() * s.width), dx = y, d_scale = scale, mean = numbers(s.rows()), inverse = mean;
    const bool backward = state.range(1) != 0;
    ops::layer_norm_modulate(shape, x.data(), scale.data(), y.data(), mean.data(), inverse.data());
    for (auto _ : state) {
        if (backward) ops::layer_norm_modulate_backward(shape, x.data(), scale.data(), mean.data(), inverse.data(), y.data(), dx.data(), d_scale.data());
        else ops::layer_norm_modulate(shape, x.data(), scale.data(), y.data(), mean.data(), inverse.data());
    }
    report(state, 0, word * double(s.rows() * s.width) * (backward ? 4 : 2));
}

void gate_residual(benchmark::State& state) {
    const Size& s = size_of(state);
    const ops::ModulationShape shape{s.batch, s.tokens, s.width, 4 * s.width};
    const auto x = numbers(s.rows() * s.width), gate = numbers(s.batch * 4 * s.width), branch = x;
    auto y = x, d_branch = x, d_gate = gate;
    const bool backward = state.range(1) != 0;
    for (auto _ : state) {
        if (backward) ops::gate_residual_backward(shape, gate.data(), branch.data(), x.data(), d_branch.data(), d_gate.data());
        else ops::gate_residual(shape, x.data(), gate.data(), branch.data(), y.data());
    }
    report(state, 0, word * double(s.rows() * s.width) * 3);
}

void qk_norm_rope(benchmark::State& state) {
    const Size& s = size_of(state);
    const ops::QkNormRopeShape shape{s.rows(), s.width / s.head_dim, s.head_dim, s.tokens};
    const auto in = numbers(s.rows() * 3 * s.width), weight = numbers(s.head_dim), angle = numbers(s.tokens * s.head_dim / 2);
    std::vector<float> cosine, sine;  // of a rotation: the backward pass turns gradients in place, again and again
    for (const float a : angle) cosine.push_back(std::cos(a)), sine.push_back(std::sin(a));
    auto out = in, d_in = in, inverse = numbers(s.rows() * 2 * shape.heads), room = numbers(ops::qk_norm_rope_workspace(shape)), d_weight = weight;
    const bool backward = state.range(1) != 0;
    ops::qk_norm_rope(shape, in.data(), weight.data(), weight.data(), cosine.data(), sine.data(), out.data(), inverse.data());
    for (auto _ : state) {
        if (backward)
            ops::qk_norm_rope_backward(shape, in.data(), weight.data(), weight.data(), cosine.data(), sine.data(), inverse.data(), out.data(),
                                       d_in.data(), d_weight.data(), d_weight.data(), room.data());
        else
            ops::qk_norm_rope(shape, in.data(), weight.data(), weight.data(), cosine.data(), sine.data(), out.data(), inverse.data());
    }
    report(state, 0, word * double(s.rows() * 3 * s.width) * (backward ? 3 : 2));
}

void adamw(benchmark::State& state) {
    const std::int64_t n = state.range(0);
    const auto gradient = numbers(n);
    auto p = numbers(n), m = numbers(n), v = std::vector<float>(static_cast<std::size_t>(n), 0.1f);
    const optim::ParameterRange all{0, n, true};
    std::int64_t update = 0;
    for (auto _ : state) optim::adamw_step({}, 1e-5, ++update, 1.0, std::span(&all, 1), gradient, p, m, v);
    report(state, 0, word * double(n) * 7);
}

#define BOTH(f) BENCHMARK(f)->ArgNames({"size", "backward"})->ArgsProduct({{0, 1}, {0, 1}})->Unit(benchmark::kMicrosecond)->UseRealTime()
#define PRODUCT(f) BENCHMARK(f)->ArgNames({"size", "times", "bf16"})->ArgsProduct({{0, 1}, {1, 3, 6}, {0, 1}})->Unit(benchmark::kMicrosecond)->UseRealTime()
PRODUCT(linear);
PRODUCT(linear_backward_input);
PRODUCT(linear_backward_weight);
BENCHMARK(attention)->ArgNames({"size", "backward", "bf16"})->ArgsProduct({{0, 1}, {0, 1}, {0, 1}})->Unit(benchmark::kMicrosecond)->UseRealTime();
BOTH(swiglu);
BOTH(norm_modulate);
BOTH(gate_residual);
BOTH(qk_norm_rope);
BENCHMARK(adamw)->Arg(3'200'000)->Arg(64'000'000)->Unit(benchmark::kMicrosecond)->UseRealTime();

}  // namespace

int main(int argc, char** argv) {
    const char* wanted = std::getenv("ATELIER_THREADS");
    set_threads(wanted == nullptr ? 1 : std::atoi(wanted));
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
    std::fprintf(stderr, "%d threads: fused multiply-adds %.1f GFLOP/s, tiles %.1f GFLOP/s, memory %.1f GB/s\n", threads(), peaks().flops / 1e9,
                 peaks().tiles / 1e9, peaks().bytes / 1e9);
    benchmark::RunSpecifiedBenchmarks();
}
