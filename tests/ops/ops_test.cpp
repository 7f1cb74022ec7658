// Every fast kernel beside a plain definition in double: outputs, and gradients against central differences, over odd
// shapes; and the same comparison on kernels broken on purpose, which must fail.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>

#include "core/parallel.hpp"
#include "harness.hpp"
#include "ops/activation.hpp"
#include "ops/attention.hpp"
#include "ops/convolution.hpp"
#include "ops/modulation.hpp"
#include "ops/norm.hpp"
#include "ops/picture.hpp"
#include "ops/rope.hpp"

namespace atelier::ops {
namespace {

using testing::Doubles;
using testing::Floats;
using testing::judge;
using testing::KernelCase;

// Float32 rounding: sums of up to a few hundred terms, and central differences with errors near 1e-9.
constexpr double tolerance = 2e-5;

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

void expect_good(const KernelCase& c) {
    for (int n : {1, 2}) {
        set_threads(n);
        const auto v = judge(c, 7);
        EXPECT_LT(v.forward_error, tolerance) << c.name;
        EXPECT_LT(v.backward_error, tolerance) << c.name;
    }
    set_threads(1);
}

/// The kernel with one output number off by 1 %, and with one gradient's sign turned: both must be seen.
void expect_breakage_seen(KernelCase c) {
    const KernelCase good = c;
    c.forward = [&](const std::vector<Floats>& in) {
        Floats y = good.forward(in);
        *std::max_element(y.begin(), y.end()) *= 1.01f;
        return y;
    };
    EXPECT_GT(judge(c, 7).forward_error, tolerance) << c.name;
    if (!good.backward) return;
    for (std::size_t broken = 0; broken < c.input_sizes.size(); ++broken) {
        c.backward = [&](const std::vector<Floats>& in, const Floats& dy) {
            auto g = good.backward(in, dy);
            float& v = *std::max_element(g[broken].begin(), g[broken].end());
            v = -v;
            return g;
        };
        EXPECT_GT(judge(c, 7).backward_error, tolerance) << c.name << " input " << broken;
    }
}

void check(const KernelCase& c) {
    expect_good(c);
    expect_breakage_seen(c);
}

KernelCase elementwise(std::string name, std::size_t n, double (*f)(double), void (*fast)(const float*, float*, std::int64_t),
                       void (*back)(const float*, const float*, float*, std::int64_t)) {
    const auto count = static_cast<std::int64_t>(n);
    return {std::move(name), {n},
            [f](const auto& in) {
                Doubles y;
                for (double x : in[0]) y.push_back(f(x));
                return y;
            },
            [=](const auto& in) {
                Floats y(n);
                fast(in[0].data(), y.data(), count);
                return y;
            },
            [=](const auto& in, const Floats& dy) {
                Floats dx(n);
                back(in[0].data(), dy.data(), dx.data(), count);
                return std::vector<Floats>{dx};
            }};
}

TEST(Activation, MatchesDefinitionAndGradient) {
    for (std::size_t n : {1u, 7u, 33u, 257u}) {
        check(elementwise("silu", n, [](double x) { return x * sigmoid(x); }, silu, silu_backward));
        check(elementwise("gelu_tanh", n,
                          [](double x) { return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); },
                          gelu_tanh, gelu_tanh_backward));
        check(elementwise("gelu_erf", n, [](double x) { return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))); }, gelu_erf,
                          gelu_erf_backward));
    }
}

TEST(Activation, SwigluByRows) {
    for (auto [rows_, width_] : {std::pair{1, 1}, {3, 5}, {5, 37}}) {
        // Copies: before version 16 Clang's lambdas capture no structured bindings.
        const int rows = rows_, width = width_;
        const std::size_t n = static_cast<std::size_t>(rows * width);
        check({"swiglu", {2 * n},
               [=](const auto& in) {
                   Doubles y(n);
                   for (int i = 0; i < rows; ++i)
                       for (int j = 0; j < width; ++j) {
                           const double v = in[0][i * 2 * width + j], g = in[0][i * 2 * width + width + j];
                           y[i * width + j] = v * g * sigmoid(g);
                       }
                   return y;
               },
               [=](const auto& in) {
                   Floats y(n);
                   swiglu(rows, width, in[0].data() + width, in[0].data(), 2 * width, y.data());
                   return y;
               },
               [=](const auto& in, const Floats& dy) {
                   Floats d(2 * n);
                   swiglu_backward(rows, width, in[0].data() + width, in[0].data(), 2 * width, dy.data(), d.data() + width,
                                   d.data());
                   return std::vector<Floats>{d};
               }});
    }
}

TEST(Activation, TanhSaturates) {
    const Floats x{-100, -9, -1, -1e-3f, 0, 1e-3f, 1, 9, 100};
    Floats y(x.size());
    tanh(x.data(), y.data(), static_cast<std::int64_t>(x.size()));
    for (std::size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(y[i], std::tanh(double(x[i])), 2e-7);
}

TEST(RmsNorm, MatchesDefinitionAndGradient) {
    for (float offset : {0.0f, 1.0f})
        for (auto [rows_, width_] : {std::pair{1, 3}, {5, 17}, {67, 20}}) {
            const int rows = rows_, width = width_;
            const RmsNormShape s{rows, width, 0, 0, 1e-3f, offset};
            const auto n = static_cast<std::size_t>(rows * width);
            check({"rms_norm", {n, static_cast<std::size_t>(width)},
                   [=](const auto& in) {
                       Doubles y(n);
                       for (int i = 0; i < rows; ++i) {
                           double square = 0;
                           for (int j = 0; j < width; ++j) square += in[0][i * width + j] * in[0][i * width + j];
                           for (int j = 0; j < width; ++j)
                               y[i * width + j] = in[0][i * width + j] / std::sqrt(square / width + s.eps) * (offset + in[1][j]);
                       }
                       return y;
                   },
                   [=](const auto& in) {
                       Floats y(n);
                       rms_norm(s, in[0].data(), in[1].data(), y.data(), nullptr);
                       return y;
                   },
                   [=](const auto& in, const Floats& dy) {
                       Floats y(n), inverse(rows), dx(n), dw(width);
                       rms_norm(s, in[0].data(), in[1].data(), y.data(), inverse.data());
                       rms_norm_backward(s, in[0].data(), in[1].data(), inverse.data(), dy.data(), dx.data(), dw.data());
                       return std::vector<Floats>{dx, dw};
                   }});
        }
}

Doubles layer_norm_reference(const Doubles& x, int rows, int width, double eps) {
    Doubles y(x.size());
    for (int i = 0; i < rows; ++i) {
        double mean = 0, square = 0;
        for (int j = 0; j < width; ++j) mean += x[i * width + j] / width;
        for (int j = 0; j < width; ++j) square += (x[i * width + j] - mean) * (x[i * width + j] - mean) / width;
        for (int j = 0; j < width; ++j) y[i * width + j] = (x[i * width + j] - mean) / std::sqrt(square + eps);
    }
    return y;
}

TEST(LayerNorm, MatchesDefinitionAndGradient) {
    for (auto [rows_, width_] : {std::pair{1, 4}, {5, 17}, {66, 19}}) {
        const int rows = rows_, width = width_;
        const LayerNormShape s{rows, width, 1e-3f};
        const auto n = static_cast<std::size_t>(rows * width);
        check({"layer_norm", {n, static_cast<std::size_t>(width), static_cast<std::size_t>(width)},
               [=](const auto& in) {
                   Doubles y = layer_norm_reference(in[0], rows, width, s.eps);
                   for (std::size_t i = 0; i < n; ++i) y[i] = y[i] * in[1][i % width] + in[2][i % width];
                   return y;
               },
               [=](const auto& in) {
                   Floats y(n);
                   layer_norm(s, in[0].data(), in[1].data(), in[2].data(), y.data(), nullptr, nullptr);
                   return y;
               },
               [=](const auto& in, const Floats& dy) {
                   Floats y(n), mean(rows), inverse(rows), dx(n), dw(width), db(width);
                   layer_norm(s, in[0].data(), in[1].data(), in[2].data(), y.data(), mean.data(), inverse.data());
                   layer_norm_backward(s, in[0].data(), in[1].data(), mean.data(), inverse.data(), dy.data(), dx.data(), false,
                                       dw.data(), db.data());
                   return std::vector<Floats>{dx, dw, db};
               }});
    }
}

TEST(Modulation, LayerNormAndGate) {
    for (auto [groups_, rows_, width_] : {std::tuple{1, 1, 3}, {3, 5, 17}, {2, 19, 70}}) {
        const int groups = groups_, rows = rows_, width = width_;
        const ModulationShape s{groups, rows, width, 2 * width, 1e-3f};
        const auto n = static_cast<std::size_t>(groups * rows * width), m = static_cast<std::size_t>(groups * 2 * width);
        check({"layer_norm_modulate", {n, m},
               [=](const auto& in) {
                   Doubles y = layer_norm_reference(in[0], groups * rows, width, s.eps);
                   for (std::size_t i = 0; i < n; ++i) y[i] *= 1 + in[1][i / (rows * width) * 2 * width + i % width];
                   return y;
               },
               [=](const auto& in) {
                   Floats y(n), mean(groups * rows), inverse(groups * rows);
                   layer_norm_modulate(s, in[0].data(), in[1].data(), y.data(), mean.data(), inverse.data());
                   return y;
               },
               [=](const auto& in, const Floats& dy) {
                   Floats y(n), mean(groups * rows), inverse(groups * rows), dx(n), dm(m);
                   layer_norm_modulate(s, in[0].data(), in[1].data(), y.data(), mean.data(), inverse.data());
                   layer_norm_modulate_backward(s, in[0].data(), in[1].data(), mean.data(), inverse.data(), dy.data(), dx.data(),
                                                dm.data());
                   return std::vector<Floats>{dx, dm};
               }});
        check({"gate_residual", {n, m, n},
               [=](const auto& in) {
                   Doubles y(n);
                   for (std::size_t i = 0; i < n; ++i) y[i] = in[0][i] + in[1][i / (rows * width) * 2 * width + i % width] * in[2][i];
                   return y;
               },
               [=](const auto& in) {
                   Floats y(n);
                   gate_residual(s, in[0].data(), in[1].data(), in[2].data(), y.data());
                   return y;
               },
               [=](const auto& in, const Floats& dy) {
                   Floats dm(m), db(n);
                   gate_residual_backward(s, in[1].data(), in[2].data(), dy.data(), db.data(), dm.data());
                   return std::vector<Floats>{dy, dm, db};
               }});
    }
}

TEST(Rope, QkNormAndRotation) {
    for (auto [rows_, positions_, heads_, dim_] : {std::tuple{1, 1, 1, 2}, {6, 3, 2, 6}, {34, 17, 3, 10}}) {
        const int rows = rows_, positions = positions_, heads = heads_, dim = dim_;
        const QkNormRopeShape s{rows, heads, dim, positions, 1e-3f};
        const int width = heads * dim, half = dim / 2;
        Floats cosine(positions * half), sine(positions * half);
        for (int i = 0; i < positions * half; ++i) cosine[i] = std::cos(0.3f * i), sine[i] = std::sin(0.3f * i);
        const auto n = static_cast<std::size_t>(rows * 3 * width), d = static_cast<std::size_t>(dim);
        check({"qk_norm_rope", {n, d, d},
               [=](const auto& in) {
                   Doubles y = in[0];
                   for (int r = 0; r < rows; ++r)
                       for (int part = 0; part < 2; ++part)
                           for (int h = 0; h < heads; ++h) {
                               double* v = &y[r * 3 * width + part * width + h * dim];
                               double square = 0;
                               for (int j = 0; j < dim; ++j) square += v[j] * v[j] / dim;
                               for (int j = 0; j < dim; ++j) v[j] *= in[1 + part][j] / std::sqrt(square + s.eps);
                               for (int i = 0; i < half; ++i) {
                                   const double c = cosine[r % positions * half + i], t = sine[r % positions * half + i];
                                   const double a = v[2 * i], b = v[2 * i + 1];
                                   v[2 * i] = a * c - b * t;
                                   v[2 * i + 1] = a * t + b * c;
                               }
                           }
                   return y;
               },
               [=](const auto& in) {
                   Floats y(n), inverse(rows * 2 * heads);
                   qk_norm_rope(s, in[0].data(), in[1].data(), in[2].data(), cosine.data(), sine.data(), y.data(), inverse.data());
                   return y;
               },
               [=](const auto& in, const Floats& dy) {
                   Floats y(n), inverse(rows * 2 * heads), g = dy, dq(d), dk(d), workspace(qk_norm_rope_workspace(s));
                   qk_norm_rope(s, in[0].data(), in[1].data(), in[2].data(), cosine.data(), sine.data(), y.data(), inverse.data());
                   qk_norm_rope_backward(s, in[0].data(), in[1].data(), in[2].data(), cosine.data(), sine.data(), inverse.data(),
                                         g.data(), g.data(), dq.data(), dk.data(), workspace.data());
                   return std::vector<Floats>{g, dq, dk};
               }});
    }
}

TEST(Rope, Halves) {
    const int rows = 5, heads = 3, dim = 6, stride = heads * dim + 4, half = dim / 2;
    Floats cosine(rows * half), sine(rows * half);
    for (int i = 0; i < rows * half; ++i) cosine[i] = std::cos(0.7f * i), sine[i] = std::sin(0.7f * i);
    check({"rope_half", {static_cast<std::size_t>(rows * stride)},
           [=](const auto& in) {
               Doubles y = in[0];
               for (int r = 0; r < rows; ++r)
                   for (int h = 0; h < heads; ++h)
                       for (int i = 0; i < half; ++i) {
                           double* v = &y[r * stride + h * dim];
                           const double a = v[i], b = v[i + half], c = cosine[r * half + i], t = sine[r * half + i];
                           v[i] = a * c - b * t;
                           v[i + half] = b * c + a * t;
                       }
               return y;
           },
           [=](const auto& in) {
               Floats y = in[0];
               rope_half(rows, heads, dim, stride, cosine.data(), sine.data(), y.data());
               return y;
           },
           [=](const auto&, const Floats& dy) {
               Floats dx = dy;
               rope_half_backward(rows, heads, dim, stride, cosine.data(), sine.data(), dx.data());
               return std::vector<Floats>{dx};
           }});
}

struct AttentionCase {
    int batch, queries, shared, own, heads, kv_heads, dim;
    bool limits, padding;
};

/// Of rows [keys, values]; null where there are no rows.
template <typename Pointers, typename Rows>
Pointers keys_and_values(Rows& rows, std::int64_t width) {
    if (rows.empty()) return {};
    return {rows.data(), rows.data() + width};
}

KernelCase attention_case(const AttentionCase& a) {
    AttentionShape s;
    s.batch = a.batch, s.queries = a.queries, s.shared_keys = a.shared, s.own_keys = a.own;
    s.heads = a.heads, s.kv_heads = a.kv_heads, s.head_dim = a.dim;
    const std::int64_t q_width = a.heads * a.dim, kv_width = a.kv_heads * a.dim;
    s.q_stride = q_width, s.out_stride = q_width, s.own_stride = 2 * kv_width, s.shared_stride = 2 * kv_width;
    s.scale = 1.0f / std::sqrt(float(a.dim));
    // Kept alive by the lambdas that hold copies of the shared pointers.
    auto limits = std::make_shared<std::vector<std::int32_t>>();
    auto shared_valid = std::make_shared<std::vector<std::uint8_t>>();
    auto own_valid = std::make_shared<std::vector<std::uint8_t>>();
    for (int i = 0; i < a.queries; ++i) limits->push_back(std::min(a.own, i / 2 * 2 + 1));
    for (int i = 0; i < a.shared; ++i) shared_valid->push_back(i % 3 != 1);
    for (int i = 0; i < a.batch * a.own; ++i) own_valid->push_back(i % 5 != 3);
    if (a.limits) s.own_limit = limits->data();
    if (a.padding) s.shared_valid = shared_valid->data(), s.own_valid = own_valid->data();
    const auto sees = [=](std::int64_t b, std::int64_t i, std::int64_t key) {
        if (key < a.shared) return !a.padding || (*shared_valid)[key] != 0;
        const std::int64_t j = key - a.shared;
        return (!a.limits || j < (*limits)[i]) && (!a.padding || (*own_valid)[b * a.own + j] != 0);
    };
    const std::size_t nq = a.batch * a.queries * q_width, ns = a.shared * 2 * kv_width, no = a.batch * a.own * 2 * kv_width;
    return {"attention", {nq, ns, no},
            [=](const auto& in) {
                Doubles y(nq);
                for (std::int64_t b = 0; b < a.batch; ++b)
                    for (std::int64_t h = 0; h < a.heads; ++h)
                        for (std::int64_t i = 0; i < a.queries; ++i) {
                            const std::int64_t kv = h / (a.heads / a.kv_heads);
                            const double* q = &in[0][(b * a.queries + i) * q_width + h * a.dim];
                            const auto row = [&](std::int64_t key) {
                                return (key < a.shared ? in[1].data() + key * 2 * kv_width
                                                       : in[2].data() + (b * a.own + key - a.shared) * 2 * kv_width) + kv * a.dim;
                            };
                            double sum = 0;
                            Doubles out(a.dim);
                            for (std::int64_t key = 0; key < a.shared + a.own; ++key) {
                                if (!sees(b, i, key)) continue;
                                double score = 0;
                                for (int j = 0; j < a.dim; ++j) score += q[j] * row(key)[j];
                                const double e = std::exp(score * s.scale);
                                sum += e;
                                for (int j = 0; j < a.dim; ++j) out[j] += e * row(key)[kv_width + j];
                            }
                            for (int j = 0; j < a.dim; ++j)
                                y[(b * a.queries + i) * q_width + h * a.dim + j] = sum == 0 ? 0 : out[j] / sum;
                        }
                return y;
            },
            [=](const auto& in) {
                Floats y(nq), workspace(attention_workspace(s));
                attention(s, in[0].data(), keys_and_values<AttentionKeys>(in[1], kv_width), keys_and_values<AttentionKeys>(in[2], kv_width),
                          y.data(), nullptr, Tensor::of(workspace.data(), {static_cast<std::int64_t>(workspace.size())}));
                return y;
            },
            [=](const auto& in, const Floats& dy) {
                Floats y(nq), lse(a.batch * a.heads * a.queries), workspace(attention_backward_workspace(s)), dq(nq), ds(ns), down(no);
                const Tensor w = Tensor::of(workspace.data(), {static_cast<std::int64_t>(workspace.size())});
                const auto shared = keys_and_values<AttentionKeys>(in[1], kv_width), own = keys_and_values<AttentionKeys>(in[2], kv_width);
                attention(s, in[0].data(), shared, own, y.data(), lse.data(), w);
                attention_backward(s, in[0].data(), shared, own, y.data(), lse.data(), dy.data(), dq.data(),
                                   keys_and_values<AttentionKeyGradients>(ds, kv_width), keys_and_values<AttentionKeyGradients>(down, kv_width), w);
                return std::vector<Floats>{dq, ds, down};
            }};
}

TEST(Attention, SharedAndOwnKeysMasksAndGroups) {
    check(attention_case({1, 3, 2, 3, 1, 1, 4, false, false}));
    check(attention_case({2, 5, 7, 4, 4, 2, 3, true, true}));
    expect_good(attention_case({2, 70, 3, 9, 2, 1, 5, false, true}));
    expect_good(attention_case({1, 6, 0, 6, 2, 2, 4, true, false}));    // own keys alone
    expect_good(attention_case({3, 4, 5, 0, 1, 1, 2, false, false}));   // shared keys alone
}

// Of many queries and keys a block of queries runs after the other: as if each had been called with some of them alone.
TEST(Attention, BlocksOfQueriesAreAsTheirPartsAlone) {
    constexpr std::int64_t queries = 150, shared_keys = 5, own_keys = 8200, dim = 3, width = 3 * dim;
    const std::int64_t cuts[] = {0, 64, 80, queries};
    AttentionShape s;
    s.queries = queries, s.shared_keys = shared_keys, s.own_keys = own_keys, s.heads = s.kv_heads = 1, s.head_dim = dim;
    s.q_stride = s.shared_stride = s.own_stride = width, s.out_stride = dim, s.scale = 0.5f;
    const auto random = [](std::int64_t n, std::uint64_t seed) {
        Floats x(static_cast<std::size_t>(n));
        fill_normal(random_key(seed, RandomUse::test, 0), x);
        return x;
    };
    const Floats q = random(queries * width, 1), shared = random(shared_keys * width, 2), own = random(own_keys * width, 3), d_out = random(queries * dim, 4);
    struct Results {
        Floats out = Floats(queries * dim), lse = Floats(queries), dq = Floats(queries * width), d_shared = Floats(shared_keys * width), d_own = Floats(own_keys * width);
    };
    const auto run = [&](std::int64_t begin, std::int64_t end, Results& r) {
        AttentionShape part = s;
        part.queries = end - begin;
        Floats workspace(attention_backward_workspace(part));
        const Tensor w = Tensor::of(workspace.data(), {static_cast<std::int64_t>(workspace.size())});
        const AttentionKeys of_shared{shared.data(), shared.data() + dim}, of_own{own.data(), own.data() + dim};
        float* out = r.out.data() + begin * dim;
        attention(part, q.data() + begin * width, of_shared, of_own, out, r.lse.data() + begin, w);
        attention_backward(part, q.data() + begin * width, of_shared, of_own, out, r.lse.data() + begin, d_out.data() + begin * dim, r.dq.data() + begin * width,
                           {r.d_shared.data(), r.d_shared.data() + dim}, {r.d_own.data(), r.d_own.data() + dim}, w);
    };
    Results whole, parts;
    run(0, queries, whole);
    Doubles sum(own_keys * width);
    for (std::size_t i = 0; i + 1 < std::size(cuts); ++i) {
        run(cuts[i], cuts[i + 1], parts);
        for (std::size_t j = 0; j < sum.size(); ++j) sum[j] += double(parts.d_own[j]);
    }
    // Not the same bits: which product is fastest depends on the block's size. The largest differences of 10^5 sums of 150 or 8,200 fp32 numbers.
    const auto difference = [](const Floats& a, const Floats& b) { return error_over_rms(a, Doubles(b.begin(), b.end())); };
    EXPECT_LT(difference(whole.out, parts.out), 1e-4);
    EXPECT_LT(difference(whole.lse, parts.lse), 1e-4);
    EXPECT_LT(difference(whole.dq, parts.dq), 1e-4);
    EXPECT_LT(difference(whole.d_shared, parts.d_shared), 1e-4);
    EXPECT_LT(error_over_rms(whole.d_own, sum), 1e-4);
}

// Prompts of different lengths share a workspace that was planned for the longest.
TEST(Attention, WorkspaceIsNeverLessForMoreKeysOrQueries) {
    AttentionShape s;
    s.heads = s.kv_heads = 1, s.head_dim = 2;
    const auto workspace = [&](std::int64_t queries, std::int64_t keys) {
        s.queries = queries, s.own_keys = keys;
        return std::pair{attention_workspace(s), attention_backward_workspace(s)};
    };
    for (const std::int64_t queries : {1, 33, 64, 65, 300, 1024, 4096}) {
        auto fewer = workspace(queries, 1);
        for (std::int64_t keys = 20; keys < 20000; keys += 37) {
            const auto more = workspace(queries, keys), of_more_queries = workspace(queries + 1, keys);
            EXPECT_TRUE(fewer.first <= more.first && fewer.second <= more.second) << queries << " queries, " << keys << " keys";
            EXPECT_TRUE(more.first <= of_more_queries.first && more.second <= of_more_queries.second) << queries << " queries, " << keys << " keys";
            fewer = more;
        }
    }
}

TEST(Attention, WithoutKeysOrQueries) {
    AttentionShape s;
    s.heads = s.kv_heads = 1, s.head_dim = 2, s.q_stride = s.own_stride = s.shared_stride = s.out_stride = 2, s.scale = 1;
    const Floats x{1, 2, 3, 4};
    for (const auto& [queries, keys] : {std::pair{2, 0}, {0, 2}, {0, 0}}) {
        s.queries = queries, s.own_keys = keys;
        const auto n = static_cast<std::size_t>(queries * 2);
        Floats y(n, 9.0f), lse(n), workspace(attention_backward_workspace(s) + 1), dq(n, 9.0f), dk(4), dv(4);
        const Tensor w = Tensor::of(workspace.data(), {static_cast<std::int64_t>(workspace.size())});
        attention(s, x.data(), {}, {x.data(), x.data()}, y.data(), lse.data(), w);
        EXPECT_EQ(y, Floats(n)) << queries << " queries, " << keys << " keys";
        attention_backward(s, x.data(), {}, {x.data(), x.data()}, y.data(), lse.data(), x.data(), dq.data(), {}, {dk.data(), dv.data()}, w);
        EXPECT_EQ(dq, Floats(n)) << queries << " queries, " << keys << " keys";
    }
}

TEST(Attention, QueryThatSeesNothingGivesZeros) {
    AttentionShape s;
    s.queries = s.own_keys = 2, s.heads = s.kv_heads = 1, s.head_dim = 2;
    s.q_stride = s.own_stride = s.out_stride = 2, s.scale = 1;
    const std::uint8_t valid[2] = {0, 0};
    s.own_valid = valid;
    const Floats x{1, 2, 3, 4};
    Floats y(4, 9.0f), lse(2), workspace(attention_backward_workspace(s)), dq(4, 9.0f), dk(4, 9.0f), dv(4, 9.0f);
    const Tensor w = Tensor::of(workspace.data(), {static_cast<std::int64_t>(workspace.size())});
    attention(s, x.data(), {}, {x.data(), x.data()}, y.data(), lse.data(), w);
    EXPECT_EQ(y, Floats(4));
    attention_backward(s, x.data(), {}, {x.data(), x.data()}, y.data(), lse.data(), x.data(), dq.data(), {}, {dk.data(), dv.data()}, w);
    EXPECT_EQ(dq, Floats(4));
    EXPECT_EQ(dk, Floats(4));
}

TEST(Convolution, MatchesDefinition) {
    for (auto [in_c_, out_c_, h_, w_, kernel_, stride_, begin_, end_] :
         {std::tuple{1, 1, 3, 3, 3, 1, 1, 1}, {5, 7, 6, 4, 3, 1, 1, 1}, {8, 16, 9, 11, 3, 1, 1, 1}, {6, 6, 8, 10, 3, 2, 0, 1}, {17, 3, 5, 7, 3, 1, 1, 1}}) {
        const int in_c = in_c_, out_c = out_c_, h = h_, w = w_, kernel = kernel_, stride = stride_, begin = begin_, end = end_;
        const ConvolutionShape s{in_c, out_c, h, w, kernel, stride, begin, end};
        const std::size_t n = s.out_height() * s.out_width() * out_c;
        check({"convolution", {std::size_t(h * w * in_c), std::size_t(out_c * in_c * kernel * kernel), std::size_t(out_c)},
               [=](const auto& in) {
                   Doubles y(n);
                   for (int r = 0; r < s.out_height(); ++r)
                       for (int c = 0; c < s.out_width(); ++c)
                           for (int o = 0; o < out_c; ++o) {
                               double sum = in[2][o];
                               for (int i = 0; i < in_c; ++i)
                                   for (int ky = 0; ky < kernel; ++ky)
                                       for (int kx = 0; kx < kernel; ++kx) {
                                           const int y0 = r * stride + ky - begin, x0 = c * stride + kx - begin;
                                           if (y0 < 0 || y0 >= h || x0 < 0 || x0 >= w) continue;
                                           sum += in[0][(y0 * w + x0) * in_c + i] * in[1][((o * in_c + i) * kernel + ky) * kernel + kx];
                                       }
                               y[(r * s.out_width() + c) * out_c + o] = sum;
                           }
                   return y;
               },
               [=](const auto& in) {
                   const TrainableConvolution trainable(s);
                   Floats same(n), room(trainable.scratch());
                   trainable.forward(in[0].data(), in[1].data(), in[2].data(), same.data(), room.data());
                   const Convolution conv(s, in[1].data(), in[2].data());
                   Floats y(n), scratch(conv.scratch() + 16);
                   conv.run(in[0].data(), y.data(), scratch.data());
                   for (std::size_t i = 0; i < n; ++i) EXPECT_NEAR(same[i], y[i], 1e-4f);
                   return y;
               },
               [=](const auto& in, const Floats& dy) {
                   const TrainableConvolution conv(s);
                   Floats dx(in[0].size()), dw(in[1].size(), 1.0f), db(in[2].size(), 1.0f), scratch(conv.scratch());
                   conv.backward(in[0].data(), in[1].data(), dy.data(), dx.data(), dw.data(), db.data(), scratch.data());
                   for (float& v : dw) v -= 1.0f;  // they are added to
                   for (float& v : db) v -= 1.0f;
                   return std::vector<Floats>{dx, dw, db};
               }});
    }
}

TEST(Picture, NormUpsampleAndShortcuts) {
    const int h = 4, w = 6, c = 8;
    check({"channel_norm", {std::size_t(h * w * c), std::size_t(c)},
           [=](const auto& in) {
               Doubles y(h * w * c);
               for (int p = 0; p < h * w; ++p) {
                   double square = 0;
                   for (int k = 0; k < c; ++k) square += in[0][p * c + k] * in[0][p * c + k];
                   for (int k = 0; k < c; ++k) {
                       const double v = in[0][p * c + k] / std::sqrt(square) * std::sqrt(double(c)) * in[1][k];
                       y[p * c + k] = v * sigmoid(v);
                   }
               }
               return y;
           },
           [=](const auto& in) {
               Floats y(h * w * c);
               channel_norm(h * w, c, in[0].data(), in[1].data(), true, y.data());
               return y;
           },
           [=](const auto& in, const Floats& dy) {
               Floats dx(h * w * c), dgamma(c);
               channel_norm_backward(h * w, c, in[0].data(), in[1].data(), true, dy.data(), dx.data(), dgamma.data());
               return std::vector<Floats>{dx, dgamma};
           }});
    check({"upsample_nearest", {std::size_t(h * w * c)},
           [=](const auto& in) {
               Doubles y(4 * h * w * c);
               for (int r = 0; r < 2 * h; ++r)
                   for (int x = 0; x < 2 * w; ++x)
                       for (int k = 0; k < c; ++k) y[(r * 2 * w + x) * c + k] = in[0][(r / 2 * w + x / 2) * c + k];
               return y;
           },
           [=](const auto& in) {
               Floats y(4 * h * w * c);
               upsample_nearest(h, w, c, in[0].data(), y.data());
               return y;
           },
           [=](const auto&, const Floats& dy) {
               Floats dx(h * w * c);
               upsample_nearest_backward(h, w, c, dy.data(), dx.data());
               return std::vector<Floats>{dx};
           }});
    for (int frames : {1, 2}) {
        // Down: unfold to (channel, frame, row, column), average groups; up: the other way round.
        const int out_down = 2 * c, out_up = c / 2;
        check({"add_average_down", {std::size_t(h * w * c)},
               [=](const auto& in) {
                   const int group = c * frames * 4 / out_down;
                   Doubles y(h / 2 * (w / 2) * out_down);
                   for (int r = 0; r < h / 2; ++r)
                       for (int x = 0; x < w / 2; ++x) {
                           Doubles unfolded;
                           for (int k = 0; k < c; ++k)
                               for (int f = 0; f < frames; ++f)
                                   for (int i = 0; i < 2; ++i)
                                       for (int j = 0; j < 2; ++j)
                                           unfolded.push_back(f + 1 == frames ? in[0][((2 * r + i) * w + 2 * x + j) * c + k] : 0);
                           for (std::size_t u = 0; u < unfolded.size(); ++u)
                               y[(r * (w / 2) + x) * out_down + u / group] += unfolded[u] / group;
                       }
                   return y;
               },
               [=](const auto& in) {
                   Floats y(h / 2 * (w / 2) * out_down);
                   add_average_down(h, w, c, out_down, frames, 2, in[0].data(), y.data());
                   return y;
               },
               [=](const auto& in, const Floats& dy) {
                   Floats dx(in[0].size());
                   add_average_down_backward(h, w, c, out_down, frames, 2, dy.data(), dx.data());
                   return std::vector<Floats>{dx};
               }});
        check({"add_duplicate_up", {std::size_t(h * w * c)},
               [=](const auto& in) {
                   const int repeats = out_up * frames * 4 / c;
                   Doubles y(4 * h * w * out_up);
                   for (int r = 0; r < h; ++r)
                       for (int x = 0; x < w; ++x) {
                           Doubles repeated;
                           for (int k = 0; k < c; ++k)
                               for (int n = 0; n < repeats; ++n) repeated.push_back(in[0][(r * w + x) * c + k]);
                           for (int o = 0; o < out_up; ++o)
                               for (int i = 0; i < 2; ++i)
                                   for (int j = 0; j < 2; ++j)
                                       y[((2 * r + i) * 2 * w + 2 * x + j) * out_up + o] = repeated[((o * frames + frames - 1) * 2 + i) * 2 + j];
                       }
                   return y;
               },
               [=](const auto& in) {
                   Floats y(4 * h * w * out_up);
                   add_duplicate_up(h, w, c, out_up, frames, in[0].data(), y.data());
                   return y;
               },
               [=](const auto& in, const Floats& dy) {
                   Floats dx(in[0].size());
                   add_duplicate_up_backward(h, w, c, out_up, frames, dy.data(), dx.data());
                   return std::vector<Floats>{dx};
               }});
    }
}

}  // namespace
}  // namespace atelier::ops
