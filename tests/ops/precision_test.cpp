// Operands in bf16: the rounding itself, when it happens, and attention's own operands.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/convert.hpp"
#include "core/parallel.hpp"
#include "harness.hpp"
#include "ops/attention.hpp"
#include "ops/cpu/amx_block.hpp"
#include "ops/precision.hpp"

namespace atelier::ops {
namespace {

using testing::Floats;

float rounded(float x) { return bf16_to_f32(f32_to_bf16(x)); }

Floats normal(std::size_t n, std::uint64_t which) {
    Floats v(n);
    fill_normal(random_key(3, RandomUse::test, which), v);
    return v;
}

TEST(Precision, RoundsToTheNearestEvenNumberInPlace) {
    Floats x = normal(3 * 37, 1);
    for (float special : {0.0f, -0.0f, 1.0f + 0x1p-8f, 1.0f + 3 * 0x1p-8f, 0x1p-140f, std::numeric_limits<float>::max(), INFINITY, -INFINITY})
        x.push_back(special);  // ties, subnormal, overflow
    x.resize(3 * 40, NAN);
    const Floats before = x;
    cpu::round_to_bf16(3, 38, 40, x.data());
    for (std::size_t i = 0; i < x.size(); ++i) {
        const float expected = i % 40 < 38 ? rounded(before[i]) : before[i];
        EXPECT_TRUE(std::isnan(expected) ? std::isnan(x[i]) : x[i] == expected && std::signbit(x[i]) == std::signbit(expected)) << before[i];
    }
}

TEST(Precision, OnlyInItsScope) {
    const float pi = 3.14159265f;
    float x = pi;
    round_operand(1, 1, 1, &x);
    EXPECT_EQ(x, pi);
    {
        const PrecisionScope scope(ProductPrecision::bf16);
        round_operand(1, 1, 1, &x);
        EXPECT_EQ(x, cpu::has_amx() ? pi : rounded(pi));  // the processor's products round
    }
    EXPECT_EQ(product_precision(), ProductPrecision::fp32);
}

TEST(Precision, AttentionRoundsProbabilitiesAndGradientsOfScores) {
    const std::int64_t tokens = 5, keys = 9, d = 8;
    AttentionShape s;
    s.queries = tokens, s.own_keys = keys, s.heads = s.kv_heads = 1, s.head_dim = d;
    s.q_stride = s.own_stride = s.out_stride = d, s.scale = 1.0f / std::sqrt(float(d));
    Floats q = normal(tokens * d, 1), k = normal(keys * d, 2), v = normal(keys * d, 3), dout = normal(tokens * d, 4);
    for (Floats* operand : {&q, &k, &v, &dout}) cpu::round_to_bf16(1, static_cast<std::int64_t>(operand->size()), 0, operand->data());
    Floats out(tokens * d), sums(tokens), dq(tokens * d), dk(keys * d), dv(keys * d);
    for (const int n : {1, 2}) {
        set_threads(n);
        Floats room(static_cast<std::size_t>(attention_backward_workspace(s)));
        const Tensor workspace = Tensor::of(room.data(), {static_cast<std::int64_t>(room.size())});
        const PrecisionScope scope(ProductPrecision::bf16);
        attention(s, q.data(), {}, {k.data(), v.data()}, out.data(), sums.data(), workspace);
        attention_backward(s, q.data(), {}, {k.data(), v.data()}, out.data(), sums.data(), dout.data(), dq.data(), {}, {dk.data(), dv.data()}, workspace);
    }
    set_threads(1);
    // In double but for the two roundings. One that falls the other way moves a number by 2^-8 of it: all but a few must agree.
    const auto agree = [](const Floats& found, const testing::Doubles& expected) {
        std::size_t same = 0;
        for (std::size_t i = 0; i < found.size(); ++i) same += std::abs(found[i] - expected[i]) < 1e-5;
        return static_cast<double>(same) / static_cast<double>(found.size());
    };
    testing::Doubles e_out(tokens * d), e_dq(tokens * d), e_dk(keys * d), e_dv(keys * d), unrounded(tokens * d);
    for (int i = 0; i < tokens; ++i) {
        double p[9], total = 0, dp[9], dot = 0;
        for (int j = 0; j < keys; ++j) {
            double score = 0;
            for (int c = 0; c < d; ++c) score += double(q[i * d + c]) * k[j * d + c];
            total += p[j] = std::exp(score * s.scale);
        }
        for (int j = 0; j < keys; ++j) {
            p[j] /= total, dp[j] = 0;
            for (int c = 0; c < d; ++c) {
                dp[j] += double(dout[i * d + c]) * v[j * d + c];
                e_out[i * d + c] += rounded(float(p[j])) * v[j * d + c];
                unrounded[i * d + c] += p[j] * v[j * d + c];
                e_dv[j * d + c] += rounded(float(p[j])) * dout[i * d + c];
            }
        }
        for (int c = 0; c < d; ++c) dot += e_out[i * d + c] * dout[i * d + c];
        for (int j = 0; j < keys; ++j)
            for (int c = 0; c < d; ++c) {
                const double ds = rounded(float(p[j] * (dp[j] - dot) * s.scale));
                e_dq[i * d + c] += ds * k[j * d + c];
                e_dk[j * d + c] += ds * q[i * d + c];
            }
    }
    EXPECT_GT(agree(out, e_out), 0.7);
    EXPECT_GT(agree(dq, e_dq), 0.7);
    EXPECT_GT(agree(dk, e_dk), 0.7);
    EXPECT_GT(agree(dv, e_dv), 0.7);
    EXPECT_LT(agree(out, unrounded), 0.2);  // the roundings are there
}

}  // namespace
}  // namespace atelier::ops
