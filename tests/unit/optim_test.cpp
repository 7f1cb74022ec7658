#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "core/error.hpp"
#include "core/parallel.hpp"
#include "core/philox.hpp"
#include "optim/adamw.hpp"
#include "optim/gradient_norm.hpp"
#include "optim/learning_rate.hpp"

namespace atelier::optim {
namespace {

std::vector<float> normals(std::uint64_t stream, std::size_t n) {
    std::vector<float> values(n);
    fill_normal(random_key(11, RandomUse::test, stream), values);
    return values;
}

// torch 2.15: p = Parameter([0.5, -1.25, 2, 0, -0.75]); AdamW([p], lr=0.01, betas=(0.9, 0.95),
// eps=1e-8, weight_decay=0.1, foreach=False); the gradients below, one step() each; p printed with
// %.9g.
constexpr std::array<std::array<float, 5>, 4> torch_gradients{{{0.1f, -0.2f, 0.0f, 3.0f, 1e-5f},
                                                               {0.4f, 0.2f, 0.0f, -1.0f, 2e-5f},
                                                               {-0.3f, 0.05f, 1e-3f, 0.5f, -1e-5f},
                                                               {0.25f, -2.0f, 0.0f, 0.5f, 4e-5f}}};
constexpr std::array<std::array<float, 5>, 4> torch_parameters{
    {{0.489500016f, -1.23874998f, 1.99800003f, -0.00999999978f, -0.759240031f},
     {0.480263203f, -1.23803759f, 1.99600208f, -0.014033068f, -0.768054664f},
     {0.478029042f, -1.23833084f, 1.98777401f, -0.0181625932f, -0.771485448f},
     {0.473703235f, -1.23171186f, 1.98061478f, -0.0224633105f, -0.777305722f}}};
constexpr std::array<float, 5> torch_m{0.0376900025f, -0.193879992f, 9.00000014e-05f, 0.232700005f,
                                       5.44900013e-06f};
constexpr std::array<float, 5> torch_v{0.0150486892f, 0.203638509f, 4.75000022e-08f, 0.455318749f,
                                       1.07086874e-10f};

TEST(AdamW, FollowsTorch) {
    const AdamWConfig config{0.9, 0.95, 1e-8, 0.1};
    std::vector<float> p{0.5f, -1.25f, 2.0f, 0.0f, -0.75f}, m(5, 0.0f), v(5, 0.0f);
    const std::vector<ParameterRange> ranges{{0, 5, true}};
    for (std::size_t t = 0; t < 4; ++t) {
        adamw_step(config, 0.01, static_cast<std::int64_t>(t) + 1, 1.0, ranges, torch_gradients[t],
                   p, m, v);
        // Rounding of a few float operations on numbers of size 2.
        for (std::size_t i = 0; i < 5; ++i)
            EXPECT_NEAR(p[i], torch_parameters[t][i], 4e-7) << t << " " << i;
    }
    for (std::size_t i = 0; i < 5; ++i) {
        EXPECT_NEAR(m[i], torch_m[i], 1e-6 * std::abs(torch_m[i]));
        EXPECT_NEAR(v[i], torch_v[i], 1e-6 * torch_v[i]);
    }
}

/// AdamW as it stands in the paper, in double, one number at a time.
double slow_adamw(const AdamWConfig& config, double rate, bool decay, double p,
                  const std::vector<double>& gradients) {
    double m = 0, v = 0;
    for (std::size_t t = 1; t <= gradients.size(); ++t) {
        const double g = gradients[t - 1], steps = static_cast<double>(t);
        m = config.beta1 * m + (1 - config.beta1) * g;
        v = config.beta2 * v + (1 - config.beta2) * g * g;
        const double m_hat = m / (1 - std::pow(config.beta1, steps)),
                     v_hat = v / (1 - std::pow(config.beta2, steps));
        p -= rate * ((decay ? config.weight_decay * p : 0.0) +
                     m_hat / (std::sqrt(v_hat) + config.epsilon));
    }
    return p;
}

struct State {
    std::vector<float> p, m, v;
};

State run(std::size_t n, const std::vector<ParameterRange>& ranges) {
    State state{normals(0, n), std::vector<float>(n, 0.0f), std::vector<float>(n, 0.0f)};
    for (std::int64_t t = 1; t <= 5; ++t)
        adamw_step({}, 1e-3, t, 0.5, ranges, normals(static_cast<std::uint64_t>(t), n), state.p,
                   state.m, state.v);
    return state;
}

TEST(AdamW, AgreesWithTheSlowReferenceAndTheDecayMask) {
    constexpr std::size_t n = 70001;
    const State state =
        run(n, {{0, 3, true}, {3, 40000, false}, {40000, 40000, true}, {40000, 70001, true}});
    std::vector<std::vector<float>> gradients;
    for (std::uint64_t t = 1; t <= 5; ++t) gradients.push_back(normals(t, n));
    const auto start = normals(0, n);
    for (std::size_t i = 0; i < n; i += i < 20 ? 1 : 997) {
        std::vector<double> own;
        for (const auto& gradient : gradients) own.push_back(0.5 * gradient[i]);
        EXPECT_NEAR(state.p[i], slow_adamw({}, 1e-3, i < 3 || i >= 40000, start[i], own), 2e-6)
            << i;
    }
}

TEST(AdamW, SameBitsForAnyThreadsAndAnyShards) {
    constexpr std::size_t n = 100003;
    const std::vector<ParameterRange> ranges{{0, 50001, true}, {50001, 100003, false}};
    const State one = run(n, ranges);
    set_threads(3);
    const State three = run(n, ranges);
    set_threads(1);
    EXPECT_EQ(one.p, three.p);
    EXPECT_EQ(one.v, three.v);

    State shards{normals(0, n), std::vector<float>(n, 0.0f), std::vector<float>(n, 0.0f)};
    for (std::int64_t t = 1; t <= 5; ++t) {
        const auto gradient = normals(static_cast<std::uint64_t>(t), n);
        const auto update = [&](std::size_t begin, std::size_t end,
                                std::vector<ParameterRange> own) {
            const auto part = [&](std::vector<float>& all) {
                return std::span(all).subspan(begin, end - begin);
            };
            adamw_step({}, 1e-3, t, 0.5, own, std::span(gradient).subspan(begin, end - begin),
                       part(shards.p), part(shards.m), part(shards.v));
        };
        update(0, 33333, {{0, 33333, true}});
        update(33333, n, {{0, 50001 - 33333, true}, {50001 - 33333, 100003 - 33333, false}});
    }
    EXPECT_EQ(one.p, shards.p);
    EXPECT_EQ(one.m, shards.m);
}

TEST(AdamW, BadArgumentsAreRejected) {
    std::vector<float> p(4), m(4), v(4), g(4), short_g(3);
    EXPECT_THROW(
        adamw_step({}, 1e-3, 1, 1.0, std::vector<ParameterRange>{{0, 3, true}}, g, p, m, v), Error);
    EXPECT_THROW(
        adamw_step({}, 1e-3, 1, 1.0, std::vector<ParameterRange>{{1, 4, true}}, g, p, m, v), Error);
    EXPECT_THROW(
        adamw_step({}, 1e-3, 0, 1.0, std::vector<ParameterRange>{{0, 4, true}}, g, p, m, v), Error);
    EXPECT_THROW(
        adamw_step({}, 1e-3, 1, 1.0, std::vector<ParameterRange>{{0, 4, true}}, short_g, p, m, v),
        Error);
    EXPECT_THROW(check_config({1.0, 0.999, 1e-8, 0.0}), Error);
    EXPECT_THROW(check_config({0.9, 0.999, 0.0, 0.0}), Error);
}

TEST(GradientNorm, IsTheSumOfSquaresForAnyThreads) {
    for (const std::size_t n : {1ul, 7ul, 16384ul, 16385ul, 100003ul, 4000003ul}) {
        const auto values = normals(n, n);
        long double expected = 0;
        for (const float value : values) expected += static_cast<long double>(value) * value;
        GradientNorm norm(static_cast<std::int64_t>(n));
        const double one = norm.sum_of_squares(values);
        set_threads(3);
        const double three = norm.sum_of_squares(values);
        set_threads(1);
        EXPECT_EQ(one, three);
        EXPECT_NEAR(one, static_cast<double>(expected), 1e-12 * static_cast<double>(expected));
    }
}

TEST(GradientNorm, NonFiniteNumbersAreSeenAndFound) {
    auto values = normals(1, 20000);
    GradientNorm norm(20000);
    EXPECT_EQ(first_non_finite(values), -1);
    values[3] = std::numeric_limits<float>::max();  // its square would overflow fp32
    EXPECT_TRUE(std::isfinite(norm.sum_of_squares(values)));
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
        values[19999] = bad;
        EXPECT_FALSE(std::isfinite(norm.sum_of_squares(values)));
        EXPECT_EQ(first_non_finite(values), 19999);
    }
    EXPECT_THROW(clip_scale(std::nan(""), 1.0), Error);
}

TEST(GradientNorm, ClipsAsTorch) {
    EXPECT_EQ(clip_scale(0.5, 1.0), 1.0);
    EXPECT_NEAR(clip_scale(4.0, 1.0), 1.0 / 4.000001, 1e-15);
    EXPECT_EQ(clip_scale(4.0, 0.0), 1.0);
}

TEST(LearningRate, WarmsUpThenStaysOrFalls) {
    const LearningRate constant{2.0, RateShape::constant, 4, 0, 0.0};
    EXPECT_EQ(constant.at(1), 0.5);
    EXPECT_EQ(constant.at(4), 2.0);
    EXPECT_EQ(constant.at(1000), 2.0);
    const LearningRate cosine{2.0, RateShape::cosine, 10, 110, 0.1};
    EXPECT_EQ(cosine.at(10), 2.0);
    EXPECT_EQ(cosine.at(11), 2.0);
    EXPECT_NEAR(cosine.at(61), 2.0 * (0.1 + 0.9 * 0.5), 1e-12);
    EXPECT_NEAR(cosine.at(111), 0.2, 1e-12);
    EXPECT_NEAR(cosine.at(500), 0.2, 1e-12);
    const LearningRate to_nothing{1.0, RateShape::cosine, 0, 4, 0.0};
    EXPECT_EQ(to_nothing.at(1), 1.0);
    EXPECT_NEAR(to_nothing.at(4), 0.5 * (1 - std::sqrt(0.5)), 1e-12) << "the last update moves too";
    EXPECT_EQ((LearningRate{1.0, RateShape::cosine, 0, 1, 0.0}).at(1), 1.0);
    EXPECT_EQ((LearningRate{1.0}).at(1), 1.0);
    EXPECT_THROW((LearningRate{1.0, RateShape::cosine, 10, 10, 0.0}).at(1), Error);
    EXPECT_THROW(parse_rate_shape("linear"), Error);
}

}  // namespace
}  // namespace atelier::optim
