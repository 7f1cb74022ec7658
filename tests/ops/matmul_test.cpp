#include <gtest/gtest.h>

#include "core/parallel.hpp"
#include "harness.hpp"
#include "ops/cpu/block_product.hpp"
#include "ops/cpu/onednn.hpp"
#include "ops/linear.hpp"
#include "ops/matmul.hpp"

namespace atelier::ops {
namespace {

using testing::Doubles;
using testing::Floats;

/// Rounding of a sum of k products of unit size, largest of many elements over their RMS: errors of 2^-24 add like a random
/// walk, and the worst of 10^5 elements lies within a few deviations.
double rounding(std::int64_t k) { return 8 * 0x1p-24 * std::sqrt(static_cast<double>(std::max<std::int64_t>(k, 4))); }

Floats normal(std::size_t n, std::uint64_t which) {
    Floats v(n);
    fill_normal(random_key(3, RandomUse::test, which), v);
    return v;
}

using MatrixProduct = void (*)(bool, bool, float, const MatrixView&, const MatrixView&, float, const MatrixView&);

void expect_definition_over_shapes_flags_and_strides(MatrixProduct product) {
    for (auto [m, n, k] : {std::tuple{1, 1, 1}, {3, 5, 7}, {65, 33, 17}, {130, 800, 9}, {257, 64, 200}, {2, 1000, 64}, {13, 49, 600}, {33, 700, 401}, {513, 520, 505}})
        for (bool ta : {false, true})
            for (bool tb : {false, true}) {
                const std::int64_t ar = ta ? k : m, ac = ta ? m : k, br = tb ? n : k, bc = tb ? k : n, pad = 3;
                Floats a = normal(ar * (ac + pad), 1), b = normal(br * (bc + pad), 2), c = normal(m * (n + pad), 3), before = c;
                Doubles expected(m * n);
                Floats found(m * n);
                for (float beta : {0.0f, 1.0f}) {
                    c = before;
                    if (beta == 0) std::fill(c.begin(), c.end(), NAN);  // must be overwritten, not multiplied
                    product(ta, tb, 0.5f, {a.data(), ar, ac, ac + pad}, {b.data(), br, bc, bc + pad}, beta, {c.data(), m, n, n + pad});
                    for (int i = 0; i < m; ++i)
                        for (int j = 0; j < n; ++j) {
                            double sum = 0;
                            for (int l = 0; l < k; ++l)
                                sum += double(ta ? a[l * (ac + pad) + i] : a[i * (ac + pad) + l]) *
                                       (tb ? b[j * (bc + pad) + l] : b[l * (bc + pad) + j]);
                            expected[i * n + j] = 0.5 * sum + (beta == 0 ? 0 : before[i * (n + pad) + j]);
                            found[i * n + j] = c[i * (n + pad) + j];
                        }
                    EXPECT_LT(testing::error_over_rms(found, expected), rounding(k)) << m << " " << n << " " << k << " " << ta << tb;
                }
            }
}

TEST(Matmul, MatchesDefinitionOverShapesFlagsAndStrides) {
    expect_definition_over_shapes_flags_and_strides([](auto... arguments) { matmul(arguments...); });
}
TEST(BlockProduct, MatchesDefinitionOverShapesFlagsAndStrides) { expect_definition_over_shapes_flags_and_strides(cpu::block_product); }

TEST(BlockProduct, ARowsAndAColumnsBitsDependOnThemAlone) {
    const std::int64_t m = 29, n = 101, k = 300;
    const Floats a = normal(m * k, 1), b = normal(k * n, 2);
    const auto product = [&](std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols) {
        Floats c(rows * cols);
        Floats right(k * cols);
        for (std::int64_t p = 0; p < k; ++p) std::copy_n(b.data() + p * n + col, cols, right.data() + p * cols);
        cpu::block_product(false, false, 1, {const_cast<float*>(a.data()) + row * k, rows, k, k}, {right.data(), k, cols, cols}, 0,
                           {c.data(), rows, cols, cols});
        return c;
    };
    const Floats all = product(0, m, 0, n);
    for (auto [row, rows, col, cols] : {std::tuple{0, 1, 0, 101}, {28, 1, 0, 101}, {3, 17, 0, 101}, {0, 29, 7, 1}, {5, 9, 50, 33}}) {
        const Floats part = product(row, rows, col, cols);
        for (int i = 0; i < rows; ++i)
            for (int j = 0; j < cols; ++j) EXPECT_EQ(part[i * cols + j], all[(row + i) * n + col + j]) << row << " " << rows << " " << col << " " << cols;
    }
}

TEST(Matmul, BitsDoNotDependOnThreads) {
    for (const bool ta : {false, true})
        for (const bool tb : {false, true})
            for (auto [m, n, k] : {std::tuple{515, 577, 193}, {24, 577, 193}, {1100, 800, 800}}) {
                Floats a = normal(m * k, 1), b = normal(n * k, 2), first(m * n);
                for (int t : {1, 2, 3, 4}) {
                    set_threads(t);
                    Floats c(m * n);
                    matmul(ta, tb, 1, {a.data(), ta ? k : m, ta ? m : k, ta ? m : k}, {b.data(), tb ? n : k, tb ? k : n, tb ? k : n}, 0, {c.data(), m, n, n});
                    if (t == 1) first = c;
                    EXPECT_EQ(c, first) << t << (ta ? ", A^T" : "") << (tb ? ", B^T" : "");
                }
            }
    set_threads(1);
}

TEST(Matmul, ARowsBitsDoNotDependOnItsPlace) {
    // Every row of A is the same row, every row of C starts the same.
    for (const bool tb : {false, true})
        for (const float beta : {0.0f, 1.0f})
            for (const std::int64_t k : {16, 192})
                for (const std::int64_t n : {8, 20, 192, 576, 800}) {
                    std::vector<float> row(static_cast<std::size_t>(k)), b(static_cast<std::size_t>(k * n)), one;
                    fill_normal(random_key(3, RandomUse::test, 1), row);
                    fill_normal(random_key(3, RandomUse::test, 2), b);
                    for (std::int64_t m = 1; m <= 140; ++m) {
                        std::vector<float> a, c(static_cast<std::size_t>(m * n), 0.5f);
                        for (std::int64_t i = 0; i < m; ++i) a.insert(a.end(), row.begin(), row.end());
                        cpu::matmul(false, tb, 0.7f, {a.data(), m, k, k}, {b.data(), tb ? n : k, tb ? k : n, tb ? k : n}, beta,
                               {c.data(), m, n, n});
                        if (m == 1) one = c;
                        for (std::int64_t i = 0; i < m; ++i)
                            ASSERT_TRUE(std::equal(one.begin(), one.end(), c.begin() + i * n))
                                << "row " << i << " of " << m << ", n " << n << ", k " << k << (tb ? ", B^T" : "") << ", beta " << beta;
                    }
                }
}

TEST(Matmul, ARowsBitsDoNotDependOnItsPlaceInALargeProduct) {
    for (const bool tb : {false, true})
        for (auto [m, n, k] : {std::tuple{1024, 768, 768}, {509, 1600, 1000}, {1531, 900, 780}, {503, 1536, 1536}, {600, 767, 800}, {1100, 2300, 780}, {2051, 1030, 800}}) {
            const Floats row = normal(static_cast<std::size_t>(k), 1), b = normal(static_cast<std::size_t>(k * n), 2);
            Floats a, c(static_cast<std::size_t>(m * n));
            for (int i = 0; i < m; ++i) a.insert(a.end(), row.begin(), row.end());
            cpu::matmul(false, tb, 0.7f, {a.data(), m, k, k}, {const_cast<float*>(b.data()), tb ? n : k, tb ? k : n, tb ? k : n}, 0.0f,
                        {c.data(), m, n, n});
            for (int i = 0; i < m; ++i)
                ASSERT_TRUE(std::equal(c.begin(), c.begin() + n, c.begin() + i * n)) << "row " << i << " of " << m << ", n " << n << ", k " << k;
            for (int j = 0; j < n; j += 17) {
                double sum = 0, squares = 0;
                for (int l = 0; l < k; ++l) {
                    const double term = double(row[l]) * (tb ? b[j * k + l] : b[l * n + j]);
                    sum += term, squares += term * term;
                }
                EXPECT_LT(std::abs(c[j] - 0.7 * sum), rounding(k) * std::sqrt(squares)) << j;
            }
        }
}

TEST(Matmul, ARowsBitsDoNotDependOnHowManyThereAre) {
    // Depths that kernels cut into pieces, weights that stay in the cache and that don't; copied operands, where that makes no difference.
    const bool is_avx512 = dnnl_get_effective_cpu_isa() >= dnnl_cpu_isa_avx512_core;
    for (const bool tb : {false, true})
        for (auto [n, k] : {std::tuple{576, 192}, {300, 780}, {900, 400}, {760, 780}, {760, 1000}, {700, 1152}, {520, 1536}, {2100, 768}, {2100, 1152}}) {
            if (n > 1024 && !(is_avx512 && tb)) continue;
            const std::int64_t most = 1100;
            const Floats a = normal(static_cast<std::size_t>(most * k), 1), b = normal(static_cast<std::size_t>(n * k), 2);
            const auto product = [&, n = n, k = k](std::int64_t m, float alpha, float beta) {
                Floats c(static_cast<std::size_t>(m * n), 0.5f);
                cpu::matmul(false, tb, alpha, {const_cast<float*>(a.data()), m, k, k}, {const_cast<float*>(b.data()), tb ? n : k, tb ? k : n, tb ? k : n}, beta,
                            {c.data(), m, n, n});
                return c;
            };
            for (const auto& [alpha, beta] : {std::pair{1.0f, 0.0f}, {1.0f, 1.0f}, {0.7f, 1.0f}}) {
                const Floats all = product(most, alpha, beta);
                for (const std::int64_t m : {1, 17, 64, 255, 300, 600, 1030}) {
                    const Floats some = product(m, alpha, beta);
                    EXPECT_TRUE(std::equal(some.begin(), some.end(), all.begin()))
                        << m << " rows, n " << n << ", k " << k << (tb ? ", B^T" : "") << ", alpha " << alpha << ", beta " << beta;
                }
            }
        }
}

TEST(Matmul, AnElementsBitsDoNotDependOnItsTile) {
    if (__builtin_cpu_supports("avx512f")) GTEST_SKIP() << "AVX-512's kernels add up the last columns of a tile in an order of their own";
    // The columns of a product, a piece at a time: other tiles, the same numbers.
    const std::int64_t n = 1152;
    for (const bool ta : {false, true})
        for (const bool tb : {false, true})
            for (const std::int64_t m : {1, 24, 64, 130})
                for (const std::int64_t k : {7, 192, 400}) {
                    const Floats a = normal(static_cast<std::size_t>(m * k), 1), b = normal(static_cast<std::size_t>(n * k), 2);
                    const Floats before = normal(static_cast<std::size_t>(m * n), 3);
                    const auto product = [&](std::int64_t piece) {
                        Floats c = before;
                        for (std::int64_t j = 0; j < n; j += piece) {
                            const std::int64_t wide = std::min(piece, n - j);
                            float* from = const_cast<float*>(b.data()) + (tb ? j * k : j);
                            cpu::matmul(ta, tb, 0.7f, {const_cast<float*>(a.data()), ta ? k : m, ta ? m : k, ta ? m : k},
                                        {from, tb ? wide : k, tb ? k : wide, tb ? k : n}, 1.0f, {c.data() + j, m, wide, n});
                        }
                        return c;
                    };
                    const Floats whole = product(n);
                    for (const std::int64_t piece : {96, 336, 480})
                        EXPECT_EQ(product(piece), whole) << piece << " columns, m " << m << ", k " << k << (ta ? ", A^T" : "") << (tb ? ", B^T" : "");
                }
}

TEST(Linear, ForwardAndBackward) {
    const std::int64_t m = 67, n = 35, k = 19;
    Floats x = normal(m * k, 1), w = normal(n * k, 2), bias = normal(n, 3), dy = normal(m * n, 4), y(m * n), dx(m * k), dw(n * k, 1.0f), db(n, 1.0f);
    const Tensor tx = Tensor::of(x.data(), {m, k}), tw = Tensor::of(w.data(), {n, k}), tdy = Tensor::of(dy.data(), {m, n});
    linear(tx, tw, Tensor::of(bias.data(), {n}), Tensor::of(y.data(), {m, n}));
    linear_backward_input(tdy, tw, Tensor::of(dx.data(), {m, k}), false);
    linear_backward_weight(tdy, tx, Tensor::of(dw.data(), {n, k}), Tensor::of(db.data(), {n}));
    Doubles ey(m * n), edx(m * k), edw(n * k, 1.0), edb(n, 1.0);
    for (int i = 0; i < m; ++i)
        for (int j = 0; j < n; ++j) {
            ey[i * n + j] = bias[j];
            edb[j] += dy[i * n + j];
            for (int l = 0; l < k; ++l) {
                ey[i * n + j] += double(x[i * k + l]) * w[j * k + l];
                edx[i * k + l] += double(dy[i * n + j]) * w[j * k + l];
                edw[j * k + l] += double(dy[i * n + j]) * x[i * k + l];
            }
        }
    EXPECT_LT(testing::error_over_rms(y, ey), rounding(k));
    EXPECT_LT(testing::error_over_rms(dx, edx), rounding(n));
    EXPECT_LT(testing::error_over_rms(dw, edw), rounding(m));
    EXPECT_LT(testing::error_over_rms(db, edb), rounding(m));
    EXPECT_THROW(linear(tx, tx, {}, Tensor::of(y.data(), {m, n})), Error);
}

}  // namespace
}  // namespace atelier::ops
