// Products and attention of decoding against definitions in double, and rows that have the same bits in any company.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <vector>

#include "core/parallel.hpp"
#include "harness.hpp"
#include "ops/decode.hpp"

namespace atelier::ops {
namespace {

using testing::Floats;

Floats numbers(std::int64_t n, std::uint64_t seed) {
    Floats x(static_cast<std::size_t>(n));
    fill_normal(random_key(seed, RandomUse::test), x);
    return x;
}

TEST(Decode, ProductOfFewRows) {
    for (const auto& [m, n, k] : std::vector<std::array<std::int64_t, 3>>{{1, 1, 1}, {5, 7, 19}, {4, 4, 16}, {9, 524, 96}, {3, 6, 4096}}) {
        const auto x = numbers(m * k, 1), w = numbers(n * k, 2);
        Floats y(static_cast<std::size_t>(m * n));
        linear_rows(Tensor::of(x.data(), {m, k}), Tensor::of(w.data(), {n, k}), Tensor::of(y.data(), {m, n}));
        for (std::int64_t i = 0; i < m; ++i)
            for (std::int64_t j = 0; j < n; ++j) {
                double sum = 0, size = 0;
                for (std::int64_t l = 0; l < k; ++l) {
                    const double term = double(x[i * k + l]) * w[j * k + l];
                    sum += term;
                    size += std::abs(term);
                }
                EXPECT_NEAR(y[i * n + j], sum, 1e-6 * size) << m << " " << n << " " << k;
            }
        // Each row alone, and on another number of threads.
        Floats one(static_cast<std::size_t>(n)), threaded(y.size());
        for (std::int64_t i = 0; i < m; ++i) {
            linear_rows(Tensor::of(x.data() + i * k, {1, k}), Tensor::of(w.data(), {n, k}), Tensor::of(one.data(), {1, n}));
            EXPECT_TRUE(std::equal(one.begin(), one.end(), y.begin() + i * n));
        }
        set_threads(3);
        linear_rows(Tensor::of(x.data(), {m, k}), Tensor::of(w.data(), {n, k}), Tensor::of(threaded.data(), {m, n}));
        set_threads(1);
        EXPECT_EQ(threaded, y);
    }
}

TEST(Decode, RowsAppended) {
    for (const auto& [rows, width] : std::vector<std::array<std::int64_t, 2>>{{1, 1}, {5, 300}}) {
        const Floats x = numbers(rows * width, 1);
        Floats to(static_cast<std::size_t>(2 * rows * width), 7.0f);
        std::vector<float*> places;
        for (std::int64_t i = 0; i < rows; ++i) places.push_back(to.data() + (2 * (rows - 1 - i) + 1) * width);
        append_rows(Tensor::of(x.data(), {rows, width}), places);
        for (std::int64_t i = 0; i < 2 * rows; ++i)
            for (std::int64_t j = 0; j < width; ++j) EXPECT_EQ(to[i * width + j], i % 2 == 0 ? 7.0f : x[(rows - 1 - i / 2) * width + j]);
    }
}

TEST(Decode, AttentionOverTwoPartsOfOwnLengths) {
    const std::int64_t heads = 6, kv_heads = 2, d = 24, width = kv_heads * d, rows = 5;
    const std::int64_t first_length[] = {7, 7, 33, 0, 1}, second_length[] = {3, 1, 20, 4, 40};
    const auto q = numbers(rows * heads * d, 3);
    std::vector<Floats> k1, v1, k2, v2;
    std::vector<CachedTokens> first, second;
    for (std::int64_t r = 0; r < rows; ++r) {
        k1.push_back(numbers(first_length[r] * width, 10 + r));
        v1.push_back(numbers(first_length[r] * width, 20 + r));
        k2.push_back(numbers(second_length[r] * width, 30 + r));
        v2.push_back(numbers(second_length[r] * width, 40 + r));
    }
    for (std::int64_t r = 0; r < rows; ++r) {
        first.push_back({k1[r].data(), v1[r].data(), first_length[r]});
        second.push_back({k2[r].data(), v2[r].data(), second_length[r]});
    }
    const DecodeAttentionShape shape{heads, kv_heads, d, 64, 0.2f};
    Floats out(q.size()), scores(static_cast<std::size_t>(rows * heads * 64));
    decode_attention(shape, Tensor::of(q.data(), {rows, heads * d}), first, second, Tensor::of(out.data(), {rows, heads * d}),
                     Tensor::of(scores.data(), {rows, heads, 64}));
    for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t h = 0; h < heads; ++h) {
            const std::int64_t kv = h / (heads / kv_heads);
            std::vector<double> weight, sum(d);
            double all = 0;
            const auto each = [&](auto&& visit) {
                for (std::int64_t j = 0; j < first_length[r]; ++j) visit(&k1[r][j * width + kv * d], &v1[r][j * width + kv * d]);
                for (std::int64_t j = 0; j < second_length[r]; ++j) visit(&k2[r][j * width + kv * d], &v2[r][j * width + kv * d]);
            };
            each([&](const float* key, const float*) {
                double dot = 0;
                for (std::int64_t i = 0; i < d; ++i) dot += double(q[(r * heads + h) * d + i]) * key[i];
                weight.push_back(std::exp(0.2 * dot));
                all += weight.back();
            });
            std::size_t at = 0;
            each([&](const float*, const float* value) {
                for (std::int64_t i = 0; i < d; ++i) sum[i] += weight[at] / all * value[i];
                ++at;
            });
            for (std::int64_t i = 0; i < d; ++i) EXPECT_NEAR(out[(r * heads + h) * d + i], sum[i], 1e-5) << r << " " << h;
        }
    for (std::int64_t r = 0; r < rows; ++r) {
        Floats one(static_cast<std::size_t>(heads * d));
        decode_attention(shape, Tensor::of(q.data() + r * heads * d, {1, heads * d}), std::span(&first[r], 1), std::span(&second[r], 1),
                         Tensor::of(one.data(), {1, heads * d}), Tensor::of(scores.data(), {rows, heads, 64}));
        EXPECT_TRUE(std::equal(one.begin(), one.end(), out.begin() + r * heads * d));
    }
}

}  // namespace
}  // namespace atelier::ops
