// Products on AMX, of numbers rounded to bf16 and of fp32 numbers in three parts: against double sums, and what bits may depend on.
#include <gtest/gtest.h>

#include <array>

#include "core/convert.hpp"
#include "core/parallel.hpp"
#include "harness.hpp"
#include "ops/cpu/amx_block.hpp"
#include "ops/precision.hpp"

namespace atelier::ops {
namespace {

using testing::Doubles;
using testing::Floats;

class Amx : public ::testing::Test {
  protected:
    void SetUp() override {
        if (!cpu::has_amx()) GTEST_SKIP() << "skipped: this processor has no AMX";
    }
    void TearDown() override { set_threads(1); }
};
class AmxMatmul : public Amx, public ::testing::WithParamInterface<ProductPrecision> {};

Floats normal(std::int64_t n, std::uint64_t which) {
    Floats v(static_cast<std::size_t>(n));
    fill_normal(random_key(3, RandomUse::test, which), v);
    return v;
}

/// What a product takes of an operand.
double taken(float x) { return product_precision() == ProductPrecision::bf16 ? bf16_to_f32(f32_to_bf16(x)) : x; }

TEST_P(AmxMatmul, MatchesDefinitionOverShapesFlagsAndStrides) {
    const PrecisionScope scope(GetParam());
    for (const auto& [m, n, k] : {std::tuple<std::int64_t, std::int64_t, std::int64_t>{1, 1, 1}, {3, 5, 7}, {65, 33, 17}, {130, 800, 9}, {257, 64, 200}, {40, 49, 95}, {20, 30, 4200}, {300, 290, 650}, {33, 1300, 130}})
        for (const bool ta : {false, true})
            for (const bool tb : {false, true})
                for (const float beta : {0.0f, 1.0f}) {
                    const std::int64_t ar = ta ? k : m, ac = ta ? m : k, br = tb ? n : k, bc = tb ? k : n, pad = 3;
                    Floats a = normal(ar * (ac + pad), 1), b = normal(br * (bc + pad), 2), c = normal(m * (n + pad), 3);
                    const Floats before = c;
                    if (beta == 0.0f) std::fill(c.begin(), c.end(), NAN);  // must be overwritten, not multiplied
                    cpu::matmul(ta, tb, 0.5f, {a.data(), ar, ac, ac + pad}, {b.data(), br, bc, bc + pad}, beta, {c.data(), m, n, n + pad});
                    Doubles expected;
                    Floats found;
                    for (std::int64_t i = 0; i < m; ++i) {
                        for (std::int64_t j = 0; j < n; ++j) {
                            double sum = 0;
                            for (std::int64_t l = 0; l < k; ++l)
                                sum += taken(ta ? a[l * (ac + pad) + i] : a[i * (ac + pad) + l]) * taken(tb ? b[j * (bc + pad) + l] : b[l * (bc + pad) + j]);
                            expected.push_back(0.5 * sum + (beta == 0.0f ? 0 : before[i * (n + pad) + j]));
                            found.push_back(c[i * (n + pad) + j]);
                        }
                        for (std::int64_t j = n; j < n + pad && beta != 0.0f; ++j)
                            EXPECT_EQ(c[i * (n + pad) + j], before[i * (n + pad) + j]);  // beside C
                    }
                    // Products of bf16 are exact in fp32; sums are rounded as in matmul_test.cpp.
                    EXPECT_LT(testing::error_over_rms(found, expected), 8 * 0x1p-24 * std::sqrt(std::max<double>(static_cast<double>(k), 4)))
                        << m << " " << n << " " << k << " " << ta << tb;
                }
}

TEST_P(AmxMatmul, BitsDoNotDependOnThreads) {
    const PrecisionScope scope(GetParam());
    for (const bool ta : {false, true}) {
        const std::int64_t m = 515, n = 577, k = 1193;
        Floats a = normal(m * k, 1), b = normal(n * k, 2), first;
        for (const int t : {1, 2, 3, 4}) {
            set_threads(t);
            Floats c(static_cast<std::size_t>(m * n));
            cpu::matmul(ta, false, 1, {a.data(), ta ? k : m, ta ? m : k, ta ? m : k}, {b.data(), k, n, n}, 0, {c.data(), m, n, n});
            if (t == 1) first = c;
            EXPECT_EQ(c, first) << t;
        }
    }
}

TEST_P(AmxMatmul, AnElementsBitsDependOnItsRowAndColumnAlone) {
    const std::int64_t m = 150, n = 300, k = 4300;  // more than one piece of the depth
    const Floats a = normal(m * k, 1), b = normal(n * k, 2);
    const PrecisionScope scope(GetParam());
    for (const auto& [alpha, beta] : {std::pair{0.7f, 1.0f}, {1.0f, 1.0f}, {1.0f, 0.0f}}) {  // the last two are summed where they are wanted
        const auto product = [&, alpha = alpha, beta = beta](std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols) {
            Floats c(static_cast<std::size_t>(rows * cols), 0.5f);
            cpu::matmul(false, true, alpha, {const_cast<float*>(a.data()) + row * k, rows, k, k}, {const_cast<float*>(b.data()) + col * k, cols, k, k}, beta,
                        {c.data(), rows, cols, cols});
            return c;
        };
        const Floats all = product(0, m, 0, n);
        for (const auto& [row, rows, col, cols] : {std::array<std::int64_t, 4>{0, 1, 0, 300}, {149, 1, 0, 300}, {3, 17, 0, 300}, {0, 150, 7, 1}, {5, 90, 50, 33}}) {
            const Floats part = product(row, rows, col, cols);
            for (std::int64_t i = 0; i < rows; ++i)
                for (std::int64_t j = 0; j < cols; ++j)
                    ASSERT_EQ(part[i * cols + j], all[(row + i) * n + col + j]) << row << " " << rows << " " << col << " " << cols << ", alpha " << alpha;
        }
    }
}

TEST_P(AmxMatmul, ARowsBitsDoNotDependOnItsPlace) {
    const PrecisionScope scope(GetParam());
    for (const bool tb : {false, true})
        for (const auto& [n, k] : {std::pair<std::int64_t, std::int64_t>{64, 32}, {32, 64}, {20, 16}, {192, 192}, {576, 192}, {192, 768}, {400, 3072}, {96, 4100}}) {
            const Floats row = normal(k, 1);
            Floats b = normal(n * k, 2), one;
            for (std::int64_t m : {1, 2, 7, 16, 17, 31, 33, 64, 65, 127, 128, 129, 192, 255, 257, 300}) {
                Floats a, c(static_cast<std::size_t>(m * n), 0.5f);
                for (std::int64_t i = 0; i < m; ++i) a.insert(a.end(), row.begin(), row.end());
                cpu::matmul(false, tb, 0.7f, {a.data(), m, k, k}, {b.data(), tb ? n : k, tb ? k : n, tb ? k : n}, 1.0f, {c.data(), m, n, n});
                if (m == 1) one = c;
                for (std::int64_t i = 0; i < m; ++i)
                    ASSERT_TRUE(std::equal(one.begin(), one.end(), c.begin() + i * n)) << m << " " << n << " " << k << " " << tb << " row " << i;
            }
        }
}

INSTANTIATE_TEST_SUITE_P(Precisions, AmxMatmul, ::testing::Values(ProductPrecision::fp32, ProductPrecision::bf16),
                         [](const auto& info) { return info.param == ProductPrecision::bf16 ? "bf16" : "fp32"; });

TEST_F(Amx, SumsOfFp32NumbersOfAnySizeAreAsExactAsFp32sOwn) {
    // Terms of very different sizes, and the bits of an operand that a part less would lose: each result beside the sum of its terms' sizes.
    const std::int64_t m = 37, n = 45, k = 300;
    for (const float scale : {1e-12f, 1.0f, 1e12f}) {
        Floats a = normal(m * k, 1), b = normal(n * k, 2), c(static_cast<std::size_t>(m * n));
        for (std::size_t i = 0; i < a.size(); ++i) a[i] *= scale * std::exp2(static_cast<float>(i % 7) - 3.0f);
        cpu::matmul(false, true, 1, {a.data(), m, k, k}, {b.data(), n, k, k}, 0, {c.data(), m, n, n});
        for (std::int64_t i = 0; i < m; ++i)
            for (std::int64_t j = 0; j < n; ++j) {
                double sum = 0, squares = 0;
                for (std::int64_t l = 0; l < k; ++l) {
                    const double term = static_cast<double>(a[i * k + l]) * b[j * k + l];
                    sum += term, squares += term * term;
                }
                ASSERT_LT(std::abs(c[i * n + j] - sum), 0x1p-24 * 4 * std::sqrt(static_cast<double>(k) * squares)) << i << " " << j << ", " << scale;
            }
    }
    // One term: exact to the last bit or its neighbour.
    for (const float x : {1.0f + 0x1p-23f, -3.1415927f, 0x1.fffffep+20f, 0x1.000002p-60f, 16777215.0f})
        for (const float y : {1.0f, 0x1.fffffep+0f, -0.33333334f, 0x1.555556p+40f}) {
            Floats a{x}, b{y}, c{0.0f};
            cpu::matmul(false, true, 1, {a.data(), 1, 1, 1}, {b.data(), 1, 1, 1}, 0, {c.data(), 1, 1, 1});
            const double product = static_cast<double>(x) * y;
            EXPECT_LE(std::abs(c[0] - product), 0x1.8p-24 * std::abs(product)) << x << " " << y;
        }
}

TEST_F(Amx, WhatIsNotFiniteShows) {
    const std::int64_t k = 40;
    for (const float bad : {INFINITY, -INFINITY, NAN}) {
        Floats a = normal(3 * k, 1), b = normal(2 * k, 2), c(6);
        a[k + 5] = bad;
        cpu::matmul(false, true, 1, {a.data(), 3, k, k}, {b.data(), 2, k, k}, 0, {c.data(), 3, 2, 2});
        for (int i = 0; i < 6; ++i) EXPECT_EQ(std::isfinite(c[i]), i / 2 != 1) << i;
    }
}

TEST_F(Amx, RoundsInItsScopeAlone) {
    Floats a{1.0f + 0x1p-12f}, b{1.0f}, c{0.0f};
    cpu::matmul(false, true, 1, {a.data(), 1, 1, 1}, {b.data(), 1, 1, 1}, 0, {c.data(), 1, 1, 1});
    EXPECT_EQ(c[0], a[0]);
    const PrecisionScope scope(ProductPrecision::bf16);
    cpu::matmul(false, true, 1, {a.data(), 1, 1, 1}, {b.data(), 1, 1, 1}, 0, {c.data(), 1, 1, 1});
    EXPECT_EQ(c[0], 1.0f);
}

}  // namespace
}  // namespace atelier::ops
