#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/parallel.hpp"
#include "core/philox.hpp"
#include "distill/loss.hpp"
#include "rl/advantage.hpp"
#include "rl/curation.hpp"
#include "rl/ema.hpp"
#include "rl/objective.hpp"
#include "rl/reward_total.hpp"

namespace atelier::rl {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr float absent = std::numeric_limits<float>::quiet_NaN();  // must never be read

std::string message_of(const std::function<void()>& action) {
    try {
        action();
    } catch (const Error& error) {
        return error.message();
    }
    return "";
}

std::vector<std::uint8_t> presence(const std::vector<float>& scores) {
    std::vector<std::uint8_t> present;
    for (const float score : scores) present.push_back(std::isnan(score) ? 0 : 1);
    return present;
}

TEST(Advantage, IsTheWeightedZScore) {
    const std::vector<float> scores{1, 3, 2, 3, 3,
                                    3, 4, 3};  // 4 members, 2 dimensions; the second without spread
    const auto group =
        group_advantage({}, 4, scores, presence(scores), std::vector<double>{3.0, 1.0});
    EXPECT_FALSE(group.dropped);
    const double mean = 2.5, std = std::sqrt(1.25);
    for (std::size_t j = 0; j < 4; ++j) {
        EXPECT_NEAR(group.advantage[j], 0.75 * (scores[2 * j] - mean) / (std + 1e-4), 1e-12);
        EXPECT_EQ(group.valid[j], 1);
    }
    EXPECT_NEAR(group.spread[0].std, std, 1e-12);
    EXPECT_EQ(group.spread[0].range, 3.0);
    EXPECT_EQ(group.spread[1].range, 0.0);
}

TEST(Advantage, AbsentScoresAreLeftOutAndWeightsScaledToThosePresent) {
    // Member 1 lacks dimension 1; member 3 lacks both.
    const std::vector<float> scores{1, 5, 4, absent, 4, 3, absent, absent};
    const auto group =
        group_advantage({}, 4, scores, presence(scores), std::vector<double>{0.5, 0.5});
    EXPECT_EQ(group.spread[0].present, 3);
    EXPECT_EQ(group.spread[1].present, 2);
    const double std0 = std::sqrt(2.0), mean0 = 3.0;
    EXPECT_NEAR(group.advantage[1], (4.0 - mean0) / (std0 + 1e-4),
                1e-12);  // full weight on dimension 0
    EXPECT_NEAR(group.advantage[0], 0.5 * (1.0 - mean0) / (std0 + 1e-4) + 0.5 * 1.0 / (1.0 + 1e-4),
                1e-12);
    EXPECT_THAT(group.valid, ElementsAre(1, 1, 1, 0));
    EXPECT_EQ(group.advantage[3], 0.0);
}

TEST(Advantage, SumsToZeroWhenAllArePresent) {
    Random random(random_key(1, RandomUse::test));
    std::vector<float> scores;
    for (int i = 0; i < 24 * 3; ++i)
        scores.push_back(static_cast<float>(1.0 + 4.0 * random.uniform()));
    const auto group =
        group_advantage({}, 24, scores, presence(scores), std::vector<double>{0.2, 0.5, 0.3});
    double sum = 0;
    for (const double advantage : group.advantage) sum += advantage;
    EXPECT_NEAR(sum, 0.0, 1e-12);
}

TEST(Advantage, IsClipped) {
    std::vector<float> scores(101, 2.0f);
    scores[7] = 5.0f;  // z = 10
    const auto group = group_advantage({}, 101, scores, presence(scores), std::vector<double>{1.0});
    EXPECT_EQ(group.advantage[7], 5.0);
}

TEST(Advantage, AGroupWithoutSpreadIsDropped) {
    const std::vector<float> scores{3, 1, 3.0002f, 5, 3, 2};
    // Dimension 1 has spread, but no weight.
    const auto dropped =
        group_advantage({}, 3, scores, presence(scores), std::vector<double>{1.0, 0.0});
    EXPECT_TRUE(dropped.dropped);
    EXPECT_THAT(dropped.advantage, ElementsAre(0.0, 0.0, 0.0));
    EXPECT_FALSE(
        group_advantage({}, 3, scores, presence(scores), std::vector<double>{1.0, 0.1}).dropped);
    AdvantageConfig no_threshold;
    no_threshold.min_spread = 0.0;
    const std::vector<float> same{2, 2};
    EXPECT_TRUE(
        group_advantage(no_threshold, 2, same, presence(same), std::vector<double>{1.0}).dropped);
}

TEST(Advantage, BadNumbersAreRejected) {
    const std::vector<float> scores{1, absent, 2};
    EXPECT_THAT(message_of([&] {
                    group_advantage({}, 3, scores, std::vector<std::uint8_t>{1, 1, 1},
                                    std::vector<double>{1.0});
                }),
                HasSubstr("member 1, dimension 0"));
    EXPECT_THROW(group_advantage({}, 3, scores, presence(scores), std::vector<double>{-1.0}),
                 Error);
    EXPECT_THROW(group_advantage({}, 3, scores, presence(scores), std::vector<double>{0.0}), Error);
}

TEST(Tiers, AFailedTierCapsThoseAbove) {
    const std::vector<std::int64_t> tiers{0, 1, 2};
    std::vector<float> scores{2, 5, 1.5f};
    EXPECT_EQ(gate_tiers({3.0, {}}, tiers, std::vector<std::uint8_t>{1, 1, 1}, scores), 1);
    EXPECT_THAT(scores, ElementsAre(2.0f, 2.0f, 1.5f));
    scores = {4, 5, 4.5f};
    EXPECT_EQ(gate_tiers({3.0, {}}, tiers, std::vector<std::uint8_t>{1, 1, 1}, scores), 0);
    EXPECT_THAT(scores, ElementsAre(4.0f, 5.0f, 4.5f));
    scores = {2.9f, 5, 4.5f};
    EXPECT_EQ(gate_tiers({3.0, 1.0}, tiers, std::vector<std::uint8_t>{1, 1, 1}, scores), 2);
    EXPECT_THAT(scores, ElementsAre(2.9f, 1.0f, 1.0f));
    scores = {absent, 2.5f, 4.5f};
    EXPECT_EQ(gate_tiers({3.0, {}}, tiers, std::vector<std::uint8_t>{0, 1, 1}, scores), 1);
    EXPECT_EQ(scores[2], 2.5f);
    scores = {2, absent, 4};
    EXPECT_THROW(gate_tiers({}, tiers, std::vector<std::uint8_t>{1, 1, 1}, scores), Error);
}

TEST(Tiers, DimensionsOfOneTierDoNotCapEachOther) {
    const std::vector<std::int64_t> tiers{0, 1, 1, 4};
    const std::vector<std::uint8_t> all{1, 1, 1, 1};
    std::vector<float> scores{4, 2, 5, 4.5f};
    EXPECT_EQ(gate_tiers({3.0, {}}, tiers, all, scores), 1);
    EXPECT_THAT(scores, ElementsAre(4.0f, 2.0f, 5.0f, 2.0f));
    scores = {2.5f, 2, 1.5f, 4.5f};
    EXPECT_EQ(gate_tiers({3.0, {}}, tiers, all, scores), 1);
    EXPECT_THAT(scores, ElementsAre(2.5f, 2.0f, 1.5f, 1.5f)) << "the lowest of those that fail caps those above";
    scores = {4, absent, 2, 4.5f};
    EXPECT_EQ(gate_tiers({3.0, {}}, tiers, std::vector<std::uint8_t>{1, 0, 1, 1}, scores), 1);
    EXPECT_EQ(scores[3], 2.0f);
    scores = {1, 1, 1, 1};
    EXPECT_THROW(gate_tiers({}, std::vector<std::int64_t>{0, 2, 1, 3}, all, scores), Error);
}

TEST(Total, IsTheMeanOverPresentDimensions) {
    const std::vector<float> scores{2, absent, 5};
    const std::vector<double> weights{1.0, 5.0, 3.0};
    EXPECT_NEAR(*weighted_total(scores, presence(scores), weights), 17.0 / 4.0, 1e-12);
    EXPECT_FALSE(weighted_total(scores, std::vector<std::uint8_t>{0, 0, 0}, weights).has_value());
    EXPECT_THROW(weighted_total(scores, std::vector<std::uint8_t>{1, 1, 1}, weights), Error);
}

TEST(Surrogate, StartsAtRatioOneWithTheFullGradient) {
    const auto term = clipped_surrogate(0.0, 1.7, 1e-4);
    EXPECT_EQ(term.ratio, 1.0);
    EXPECT_EQ(term.loss, -1.7);
    EXPECT_EQ(term.d_log_ratio, -1.7);
    EXPECT_FALSE(term.clipped);
}

TEST(Surrogate, CutsTheGradientOnlyWhereTheRatioHasGoneTheAdvantagesWay) {
    const double c = 0.1;
    for (const double advantage : {1.0, -1.0}) {
        for (const double ratio : {0.8, 0.95, 1.05, 1.2}) {
            const auto term = clipped_surrogate(std::log(ratio), advantage, c);
            const bool cut = (advantage > 0 && ratio > 1 + c) || (advantage < 0 && ratio < 1 - c);
            EXPECT_EQ(term.clipped, cut) << advantage << " " << ratio;
            EXPECT_EQ(term.outside, std::abs(ratio - 1.0) > c);
            EXPECT_NEAR(term.d_log_ratio, cut ? 0.0 : -ratio * advantage, 1e-12);
            EXPECT_NEAR(
                term.loss,
                -std::min(ratio * advantage, std::min(std::max(ratio, 1 - c), 1 + c) * advantage),
                1e-12);
        }
    }
}

TEST(Guard, LogRatioIsTheCitedFormula) {
    const std::vector<float> sigmas{1.0f, 0.8f, 0.5f, 0.0f};
    const flow::Transition t = flow::transition(flow::Sampler::flow_sde, 0.7, sigmas, 1);
    constexpr std::size_t n = 64;
    std::vector<double> x(n), v_old(n), v(n), noise(n), next(n), mean(n), mean_old(n);
    Random random(random_key(2, RandomUse::test));
    for (std::size_t i = 0; i < n; ++i) {
        x[i] = random.normal();
        v_old[i] = random.normal();
        v[i] = v_old[i] + 0.1 * random.normal();
        noise[i] = random.normal();
    }
    const double old =
        *flow::step_with_log_prob<double>(t, flow::LogProb::mean, x, v_old, noise, next);
    const double now = *flow::log_prob<double>(t, flow::LogProb::mean, x, v, next);
    flow::step_mean<double>(t, x, v, mean);
    flow::step_mean<double>(t, x, v_old, mean_old);
    double shift = 0;
    for (std::size_t i = 0; i < n; ++i) shift += (mean[i] - mean_old[i]) * (mean[i] - mean_old[i]);
    shift /= n * 2.0 * t.std * t.std;
    EXPECT_NEAR(guard_log_ratio<double>(t, x, v, next, noise), t.std * (now - old + shift), 1e-13);
    EXPECT_NEAR(guard_log_ratio<double>(t, x, v_old, next, noise), 0.0, 1e-15);
    EXPECT_NEAR(guard_weight(t), 1.0 / (sigmas[1] - sigmas[2]), 1e-12);
}

TEST(ObjectiveStats, MergingIsAddingAll) {
    ObjectiveStats all, first, second;
    for (int i = 0; i < 6; ++i) {
        const auto term = clipped_surrogate(0.001 * (i - 2), i % 2 ? 1.0 : -1.0, 1e-3);
        all.add(term, 0.1 * i);
        (i < 3 ? first : second).add(term, 0.1 * i);
    }
    first.merge(second);
    first.merge(ObjectiveStats{});
    EXPECT_EQ(all.terms, first.terms);
    EXPECT_EQ(all.clipped, first.clipped);
    EXPECT_EQ(all.outside, first.outside);
    EXPECT_EQ(all.ratio_min, first.ratio_min);
    EXPECT_EQ(all.ratio_max, first.ratio_max);
    EXPECT_NEAR(all.kl, first.kl, 1e-15);
    EXPECT_NEAR(all.mean(all.ratio), first.mean(first.ratio), 1e-15);
}

TEST(Ema, FollowsTheWeightsAndWarmsUp) {
    EXPECT_NEAR(ema_decay(0.99, 0, true), 0.1, 1e-15);
    EXPECT_EQ(ema_decay(0.99, 100000, true), 0.99);
    EXPECT_EQ(ema_decay(0.99, 0, false), 0.99);
    EXPECT_THROW(ema_decay(1.0, 0, false), Error);
    std::vector<float> weights(100001), average(100001, 1.0f), again(100001, 1.0f);
    fill_normal(random_key(3, RandomUse::test), weights);
    ema_update(average, weights, 0.9);
    set_threads(2);
    ema_update(again, weights, 0.9);
    set_threads(1);
    EXPECT_EQ(average, again);
    EXPECT_NEAR(average[5], 0.9 + 0.1 * weights[5], 1e-6);
}

TEST(Curation, KeepsByRangeAndMean) {
    const std::vector<double> totals{2.0, 2.4, 3.1};
    EXPECT_EQ(curate({0.5, {}, {}}, totals).verdict, CurationVerdict::kept);
    EXPECT_EQ(curate({1.2, {}, {}}, totals).verdict, CurationVerdict::range_too_small);
    EXPECT_EQ(curate({0.5, 2.6, {}}, totals).verdict, CurationVerdict::mean_too_low);
    EXPECT_EQ(curate({0.5, {}, 2.4}, totals).verdict, CurationVerdict::mean_too_high);
    EXPECT_EQ(curate({0.5, {}, {}}, {}).verdict, CurationVerdict::no_reward);
    EXPECT_NEAR(curate({}, totals).mean, 2.5, 1e-12);
    EXPECT_NEAR(curate({}, totals).range, 1.1, 1e-12);
}

/// Groups of 8 whose dimensions 0 and 1 go together, 2 is apart, and 3 has spread in one group
/// of 50.
void fill_groups(SpreadCollector& collector, std::vector<std::vector<float>>& groups) {
    Random random(random_key(4, RandomUse::test));
    for (int group = 0; group < 200; ++group) {
        std::vector<float> scores;
        for (int j = 0; j < 8; ++j) {
            const double common = random.normal();
            scores.push_back(static_cast<float>(3.0 + 0.5 * common));
            scores.push_back(static_cast<float>(3.0 + common + 0.5 * random.normal()));
            scores.push_back(static_cast<float>(3.0 + 0.1 * random.normal()));
            scores.push_back(group % 100 == 0 ? static_cast<float>(j) : 3.0f);
        }
        collector.add_group({}, 8, scores, std::vector<std::uint8_t>(scores.size(), 1));
        groups.push_back(scores);
    }
}

TEST(Calibration, EachDimensionHasItsShareOfTheAdvantagesVariance) {
    SpreadCollector collector(4);
    std::vector<std::vector<float>> groups;
    fill_groups(collector, groups);
    const std::vector<double> shares{0.2, 0.3, 0.4, 0.1};
    const CalibratedWeights result = calibrate_weights(collector.covariance(), shares);
    EXPECT_THAT(result.calibrated, ElementsAre(1, 1, 1, 0));
    EXPECT_NEAR(result.weights[3], 0.1, 1e-12);
    double weight_sum = 0;
    for (const double weight : result.weights) {
        EXPECT_GT(weight, 0.0);
        weight_sum += weight;
    }
    EXPECT_NEAR(weight_sum, 1.0, 1e-12);

    // Measured on the advantages themselves: the covariance of each dimension's term with the
    // whole.
    auto weights = result.weights;
    weights[3] = 0.0;  // not balanced; zero it, so that the three others share the rest
    std::vector<double> contribution(3, 0.0);
    double variance = 0;
    for (const auto& scores : groups) {
        const std::vector<std::uint8_t> present(scores.size(), 1);
        const GroupAdvantage group = group_advantage({}, 8, scores, present, weights);
        const double scale = weights[0] + weights[1] + weights[2];
        for (std::size_t j = 0; j < 8; ++j) {
            for (std::size_t k = 0; k < 3; ++k) {
                const double z =
                    (scores[j * 4 + k] - group.spread[k].mean) / (group.spread[k].std + 1e-4);
                contribution[k] += weights[k] / scale * z * group.advantage[j];
            }
            variance += group.advantage[j] * group.advantage[j];
        }
    }
    for (std::size_t k = 0; k < 3; ++k) {
        EXPECT_NEAR(contribution[k] / variance, shares[k] / 0.9, 1e-6) << k;
        EXPECT_NEAR(collector.variance_shares(weights)[k], shares[k] / 0.9, 1e-12) << k;
    }
    // The population std of 8 normals is 0.9027 sigma on average, with a spread of 0.245 sigma:
    // five standard errors.
    EXPECT_NEAR(collector.mean_std()[2], 0.09027, 5.0 * 0.0245 / std::sqrt(200.0));
}

TEST(Calibration, WithoutCorrelationIsTheSquareRootRule) {
    const std::vector<double> covariance{1.0, 0.0, 0.0, 0.25};
    const auto result = calibrate_weights(covariance, std::vector<double>{1.0, 1.0});
    EXPECT_NEAR(result.weights[0], 1.0 / 3.0, 1e-12);
    EXPECT_THROW(calibrate_weights(covariance, std::vector<double>{0.0, 0.0}), Error);
    EXPECT_THROW(calibrate_weights(covariance, std::vector<double>{1.0, -1.0}), Error);
    const auto dead =
        calibrate_weights(std::vector<double>{0.0, 0.0, 0.0, 0.0}, std::vector<double>{1.0, 3.0});
    EXPECT_THAT(dead.weights, ElementsAre(0.25, 0.75));
    EXPECT_THAT(dead.calibrated, ElementsAre(0, 0));
}

TEST(Calibration, IsOfTheGroupsThatADimensionIsHeardIn) {
    AdvantageConfig config;
    config.min_spread = 0.3;
    // Dimension 1 ranges over 0.2 in the first group, over 2 in the second.
    const std::vector<float> low{1, 3.0f, 3, 3.2f}, high{1, 2, 3, 4};
    SpreadCollector collector(2);
    collector.add_group(config, 2, low, presence(low));
    EXPECT_THAT(collector.covariance(), ElementsAre(::testing::DoubleNear(1, 1e-3), 0, 0, 0)) << "training hears dimension 0 alone";
    collector.add_group(config, 2, high, presence(high));
    EXPECT_NEAR(collector.covariance()[3], 0.5, 1e-3);
    EXPECT_NEAR(collector.covariance()[1], 0.5, 1e-3);
    EXPECT_NEAR(collector.mean_std()[1], (0.1 + 1) / 2, 1e-6) << "its spread is told as it is";
    SpreadCollector deaf(2);
    config.min_spread = 0.1;
    deaf.add_group(config, 2, low, presence(low));
    EXPECT_NEAR(deaf.covariance()[3], 1, 1e-2);
}

/// Two dimensions of equal spread: 1 is in every fifth group alone, and ranges over too little in half of those.
TEST(Calibration, GoesByTheSamplesThatHaveADimension) {
    AdvantageConfig config;
    config.min_spread = 0.1;
    Random random(random_key(5, RandomUse::test));
    std::vector<std::vector<float>> groups;
    SpreadCollector collector(2);
    for (int group = 0; group < 2000; ++group) {
        std::vector<float>& scores = groups.emplace_back();
        for (int j = 0; j < 8; ++j) {
            scores.push_back(static_cast<float>(3 + random.normal()));
            const auto second = static_cast<float>(3 + random.normal());
            scores.push_back(group % 5 != 0 ? absent : group % 10 == 0 ? 3.0f : second);
        }
        collector.add_group(config, 8, scores, presence(scores));
    }
    const auto weights = calibrate_weights(collector.covariance(), std::vector<double>{1, 1}).weights;
    EXPECT_NEAR(weights[1] / weights[0], std::sqrt(2.0), 0.02) << "heard in every other group: half the second moment";
    struct Sums {
        double of_first = 0, variance = 0;
        double share() const { return of_first / variance; }
    } all, with_both;
    for (const auto& scores : groups) {
        const GroupAdvantage a = group_advantage(config, 8, scores, presence(scores), weights);
        const bool has_both = presence(scores)[1] != 0;
        for (std::size_t j = 0; j < 8; ++j) {
            const double z = (scores[j * 2] - a.spread[0].mean) / (a.spread[0].std + config.epsilon);
            for (Sums* sums : {&all, &with_both}) {
                if (sums == &with_both && !has_both) continue;
                sums->of_first += (has_both ? weights[0] : 1.0) * z * a.advantage[j];
                sums->variance += a.advantage[j] * a.advantage[j];
            }
        }
    }
    EXPECT_NEAR(with_both.share(), 0.5, 0.02) << "as asked where there are two";
    EXPECT_NEAR(collector.variance_shares(weights)[0], all.share(), 1e-9) << "what is said is what training takes";
    EXPECT_GT(all.share(), 0.85) << "most samples have no other dimension";
}

TEST(Calibration, WeighsEveryDimension) {
    // Dimension 1 is to have no share, 3 was in no sample.
    const std::vector<double> covariance{1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0.25, 0, 0, 0, 0, 0};
    const std::vector<bool> seen{true, true, true, false};
    const auto weights = weigh_dimensions(covariance, std::vector<double>{1, 0, 1, 1}, seen, true);
    EXPECT_NEAR(weights[0], 1.0 / 3, 1e-12);
    EXPECT_EQ(weights[1], 0);
    EXPECT_NEAR(weights[2], 2.0 / 3, 1e-12);
    EXPECT_NEAR(weights[3], 0.5, 1e-12) << "the mean of those that were balanced";
    EXPECT_NEAR(weigh_dimensions(covariance, std::vector<double>{1, 0, 1, 3}, seen, true)[3], 1.5, 1e-12);
    EXPECT_THAT(weigh_dimensions(covariance, std::vector<double>{1, 0, 2, 0}, seen, false), ElementsAre(1, 0, 2, 0));
    EXPECT_THAT(weigh_dimensions(covariance, std::vector<double>{0, 0, 0, 1}, seen, true), ElementsAre(0, 0, 0, 1))
        << "nothing of what was seen is to count";
}

TEST(DistillLoss, IsTheMeanSquareAndItsKlForm) {
    const std::vector<float> sigmas{1.0f, 0.8f, 0.5f, 0.0f}, v{1.0f, 2.0f}, teacher{0.0f, 4.0f};
    std::vector<float> d_v{10.0f, 0.0f};
    const flow::Transition t = flow::transition(flow::Sampler::dance_sde, 0.5, sigmas, 1);
    EXPECT_NEAR(distill::loss<float>(distill::LossKind::velocity, t, v, teacher, 2.0, d_v), 2.5,
                1e-6);
    EXPECT_NEAR(d_v[0], 10.0 + 2.0 * 1.0, 1e-6);  // added to what was there
    EXPECT_NEAR(d_v[1], 2.0 * -2.0, 1e-6);
    const double factor = t.on_v * t.on_v / (2.0 * t.std * t.std);
    EXPECT_NEAR(distill::loss<float>(distill::LossKind::kl, t, v, teacher, 1.0, d_v), 2.5 * factor,
                1e-6);
    const flow::Transition ode = flow::transition(flow::Sampler::ode, 0.0, sigmas, 1);
    EXPECT_THROW(distill::loss<float>(distill::LossKind::kl, ode, v, teacher, 1.0, d_v), Error);
    EXPECT_THROW(distill::parse_loss_kind("l1"), Error);
}

}  // namespace
}  // namespace atelier::rl
