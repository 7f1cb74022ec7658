#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "core/error.hpp"
#include "core/philox.hpp"
#include "eval/bootstrap.hpp"
#include "eval/bradley_terry.hpp"
#include "eval/rank_correlation.hpp"
#include "eval/score_agreement.hpp"

namespace atelier::eval {
namespace {

TEST(Bootstrap, CoversTheTruthAsOftenAsItSays) {
    // 200 data sets of 40 prompts x 2 samples with a common part per prompt. Percentile intervals
    // of 40 clusters cover a little less than 95 %; the bounds are five standard errors around 93
    // %.
    constexpr int sets = 200;
    Random random(random_key(1, RandomUse::test));
    int covered = 0, covered_unclustered = 0;
    BootstrapConfig config;
    config.resamples = 400;
    for (int set = 0; set < sets; ++set) {
        std::vector<double> values;
        std::vector<std::uint64_t> prompt, own;
        for (std::uint64_t p = 0; p < 40; ++p) {
            const double common = random.normal();
            for (int j = 0; j < 2; ++j) {
                values.push_back(3.0 + common + 0.1 * random.normal());
                prompt.push_back(p);
                own.push_back(own.size());
            }
        }
        config.stream = static_cast<std::uint64_t>(set);
        const Interval interval = bootstrap_mean(config, values, prompt);
        const Interval narrow = bootstrap_mean(config, values, own);
        covered += interval.low <= 3.0 && 3.0 <= interval.high ? 1 : 0;
        covered_unclustered += narrow.low <= 3.0 && 3.0 <= narrow.high ? 1 : 0;
        EXPECT_EQ(interval.n, 80);
        EXPECT_EQ(interval.clusters, 40);
    }
    const double error = 5.0 * std::sqrt(0.93 * 0.07 / sets);
    EXPECT_NEAR(covered / static_cast<double>(sets), 0.93, error);
    EXPECT_LT(covered_unclustered, covered) << "samples of one prompt count as independent";
}

TEST(Bootstrap, WidthIsThatOfTheNormalInterval) {
    std::vector<double> values;
    std::vector<std::uint64_t> cluster;
    Random random(random_key(2, RandomUse::test));
    double sum = 0, squares = 0;
    for (std::uint64_t i = 0; i < 2000; ++i) {
        values.push_back(random.normal());
        cluster.push_back(i);
        sum += values.back();
        squares += values.back() * values.back();
    }
    const double mean = sum / 2000.0, std = std::sqrt(squares / 2000.0 - mean * mean);
    const Interval interval = bootstrap_mean({}, values, cluster);
    EXPECT_NEAR(interval.mean, mean, 1e-12);
    // A 2.5 % quantile of 2000 resamples has a standard error of about 6 % of the half width.
    const double half = 1.96 * std / std::sqrt(2000.0);
    EXPECT_NEAR(interval.high - mean, half, 0.25 * half);
    EXPECT_NEAR(mean - interval.low, half, 0.25 * half);
}

TEST(Bootstrap, SameSeedSameBitsWhateverTheOrder) {
    std::vector<double> values{1, 2, 3, 4, 5, 6};
    std::vector<std::uint64_t> cluster{3, 1, 2, 3, 1, 2};
    const Interval a = bootstrap_mean({}, values, cluster);
    std::swap(values[0], values[1]);
    std::swap(cluster[0], cluster[1]);
    const Interval b = bootstrap_mean({}, values, cluster);
    EXPECT_EQ(a.low, b.low);
    EXPECT_EQ(a.high, b.high);
    BootstrapConfig other;
    other.seed = 9;
    other.resamples = 50;
    BootstrapConfig third = other;
    third.stream = 1;
    std::vector<int> first(100), second(100);
    draw_multiplicities(other, 0, first);
    draw_multiplicities(third, 0, second);
    EXPECT_NE(first, second);
}

TEST(Bootstrap, PairsAreDifferencesAndEdgesAreHandled) {
    const std::vector<double> before{1, 2, 3}, after{2, 3, 4};
    const std::vector<std::uint64_t> cluster{0, 1, 2};
    const Interval interval = bootstrap_difference({}, before, after, cluster);
    EXPECT_EQ(interval.low, 1.0);
    EXPECT_EQ(interval.high, 1.0);
    const Interval single = bootstrap_mean({}, before, std::vector<std::uint64_t>{7, 7, 7});
    EXPECT_EQ(single.low, 2.0);
    EXPECT_EQ(single.clusters, 1);
    EXPECT_THROW(bootstrap_mean({}, {}, {}), Error);
    EXPECT_THROW(
        bootstrap_mean({}, std::vector<double>{std::nan("")}, std::vector<std::uint64_t>{0}),
        Error);
    EXPECT_EQ(percentile(std::vector<double>{0, 10}, 0.25), 2.5);
}

TEST(BradleyTerry, TwoModelsAreTheOdds) {
    const auto fit = fit_bradley_terry(2, std::vector<double>{0, 30, 10, 0});
    EXPECT_FALSE(fit.regularised);
    EXPECT_NEAR(fit.log_strength[0] - fit.log_strength[1], std::log(3.0), 1e-9);
}

TEST(BradleyTerry, FindsTheMaximumOfTheLikelihood) {
    const std::vector<double> wins{0, 7.5, 3, 9, 2.5, 0, 4, 1, 5, 6, 0, 8, 1, 4, 2, 0};
    const auto fit = fit_bradley_terry(4, wins);
    const auto gradient = [&](std::size_t i) {  // observed minus expected wins
        double sum = 0;
        for (std::size_t j = 0; j < 4; ++j) {
            if (i == j) continue;
            const double games = wins[i * 4 + j] + wins[j * 4 + i];
            sum += wins[i * 4 + j] -
                   games / (1.0 + std::exp(fit.log_strength[j] - fit.log_strength[i]));
        }
        return sum;
    };
    double total = 0;
    for (std::size_t i = 0; i < 4; ++i) {
        EXPECT_NEAR(gradient(i), 0.0, 1e-8);
        total += fit.log_strength[i];
    }
    EXPECT_NEAR(total, 0.0, 1e-9);
}

TEST(BradleyTerry, SeparableOutcomesAreRegularised) {
    const auto fit = fit_bradley_terry(3, std::vector<double>{0, 10, 10, 0, 0, 10, 0, 0, 0});
    EXPECT_TRUE(fit.regularised);
    EXPECT_TRUE(std::isfinite(fit.log_strength[0]));
    EXPECT_GT(fit.log_strength[0], fit.log_strength[1]);
    EXPECT_GT(fit.log_strength[1], fit.log_strength[2]);
    EXPECT_EQ(fit_bradley_terry(1, std::vector<double>{0}).log_strength[0], 0.0);
}

TEST(Elo, RecoversKnownStrengths) {
    const std::vector<double> truth{0.0, 0.5, 1.2};
    Random random(random_key(5, RandomUse::test));
    std::vector<Outcome> outcomes;
    for (std::uint64_t prompt = 0; prompt < 400; ++prompt)
        for (int a = 0; a < 3; ++a)
            for (int b = a + 1; b < 3; ++b) {
                const double gap =
                    truth[static_cast<std::size_t>(a)] - truth[static_cast<std::size_t>(b)];
                const double p = 1.0 / (1.0 + std::exp(-gap));
                outcomes.push_back({a, b, random.uniform() < p ? 1.0 : 0.0, prompt});
            }
    BootstrapConfig config;
    config.resamples = 300;
    const EloTable table = elo_table(config, 3, outcomes);
    const double mean = (truth[0] + truth[1] + truth[2]) / 3.0;
    for (std::size_t i = 0; i < 3; ++i) {
        const double expected = 1000.0 + 400.0 / std::numbers::ln10 * (truth[i] - mean);
        EXPECT_LT(table.entries[i].low, table.entries[i].elo);
        EXPECT_GT(table.entries[i].high, table.entries[i].elo);
        // Twice the 95 % interval on each side: about four standard errors.
        EXPECT_NEAR(table.entries[i].elo, expected, table.entries[i].high - table.entries[i].low);
    }
    EXPECT_EQ(table.outcomes, 1200);
}

TEST(Elo, TiesAreHalfAWinEachAndBadOutcomesAreRejected) {
    const EloTable table = elo_table({}, 2, std::vector<Outcome>{{0, 1, 0.5, 0}, {0, 1, 0.5, 1}});
    EXPECT_NEAR(table.entries[0].elo, 1000.0, 1e-9);
    EXPECT_NEAR(table.entries[0].high, 1000.0, 1e-9);
    EXPECT_THROW(elo_table({}, 2, {}), Error);
    EXPECT_THROW(elo_table({}, 2, std::vector<Outcome>{{0, 2, 1.0, 0}}), Error);
    EXPECT_THROW(elo_table({}, 2, std::vector<Outcome>{{0, 0, 1.0, 0}}), Error);
    EXPECT_THROW(elo_table({}, 2, std::vector<Outcome>{{0, 1, 1.5, 0}}), Error);
}

TEST(Spearman, SharesRanksAndFollowsScipy) {
    EXPECT_THAT(average_ranks(std::vector<double>{3, 1, 3, 2}),
                ::testing::ElementsAre(3.5, 1.0, 3.5, 2.0));
    // scipy.stats.spearmanr([1, 2, 2, 4, 5, 6.5, 0], [2, 1, 4, 4, 3, 9, 0.5])
    EXPECT_NEAR(*spearman(std::vector<double>{1, 2, 2, 4, 5, 6.5, 0},
                          std::vector<double>{2, 1, 4, 4, 3, 9, 0.5}),
                0.790909090909091, 1e-14);
    EXPECT_NEAR(*spearman(std::vector<double>{1, 2, 3}, std::vector<double>{9, 4, 1}), -1.0, 1e-15);
    EXPECT_FALSE(spearman(std::vector<double>{1, 2}, std::vector<double>{3, 3}).has_value());
    EXPECT_FALSE(spearman({}, {}).has_value());
}

std::vector<ScoredLabel> some_scores(int n, double noise, std::uint64_t seed) {
    Random random(random_key(seed, RandomUse::test));
    std::vector<ScoredLabel> values;
    for (int i = 0; i < n; ++i) {
        const double label = 1 + 0.5 * static_cast<double>(random.below(9));
        const double score = std::round(4 * (label + noise * random.normal())) / 4;
        values.push_back({std::clamp(score, 1.0, 5.0), label, static_cast<std::uint64_t>(i / 2)});
    }
    return values;
}

TEST(ScoreAgreement, PairwiseAccuracyIsThatOfAllPairs) {
    for (const std::uint64_t seed : {1, 2, 3}) {
        const auto values = some_scores(41, 0.8, seed);
        double right = 0, pairs = 0;
        for (const auto& a : values)
            for (const auto& b : values)
                if (a.label > b.label) {
                    ++pairs;
                    right += a.score > b.score ? 1 : a.score == b.score ? 0.5 : 0;
                }
        const auto found = pairwise_accuracy({}, values);
        ASSERT_TRUE(found);
        EXPECT_NEAR(found->value, right / pairs, 1e-12);
        EXPECT_LT(found->low, found->value);
        EXPECT_GT(found->high, found->value);
        EXPECT_EQ(found->n, 41);
    }
    std::vector<ScoredLabel> equal = some_scores(9, 1, 4);
    for (auto& v : equal) v.label = 3;
    EXPECT_FALSE(pairwise_accuracy({}, equal));
    EXPECT_FALSE(rank_agreement({}, equal));
}

TEST(ScoreAgreement, ErrorAndRanks) {
    const auto values = some_scores(200, 0.5, 5);
    double sum = 0;
    std::vector<double> scores, labels;
    for (const auto& v : values) {
        sum += std::abs(v.score - v.label);
        scores.push_back(v.score);
        labels.push_back(v.label);
    }
    const Statistic mae = mean_absolute_error({}, values);
    EXPECT_NEAR(mae.value, sum / 200, 1e-12);
    EXPECT_LT(mae.high - mae.low, 0.2);
    EXPECT_NEAR(rank_agreement({}, values)->value, *spearman(scores, labels), 1e-12);
    EXPECT_THROW(mean_absolute_error({}, {}), Error);
}

TEST(ScoreAgreement, CalibrationByLevel) {
    const std::vector<ScoredLabel> values{{1.2, 1, 0}, {1.4, 2, 1}, {4.6, 5, 2}};
    const auto levels = calibration({}, values);
    ASSERT_EQ(levels.size(), 2u);
    EXPECT_EQ(levels[0].level, 1);
    EXPECT_EQ(levels[0].n, 2);
    EXPECT_NEAR(levels[0].mean_score, 1.3, 1e-12);
    EXPECT_NEAR(levels[0].label.value, 1.5, 1e-12);
    EXPECT_EQ(levels[1].level, 5);
}

TEST(ScoreAgreement, KrippendorffsExample) {
    // Krippendorff 2011, data of four observers and twelve units; interval alpha 0.849.
    const std::vector<std::vector<double>> units{{1, 1, 1},    {2, 2, 3, 2}, {3, 3, 3, 3}, {3, 3, 3, 3}, {2, 2, 2, 2}, {1, 2, 3, 4},
                                                 {4, 4, 4, 4}, {1, 1, 2, 1}, {2, 2, 2, 2}, {5, 5, 5},    {1, 1},       {3}};
    ASSERT_TRUE(krippendorff_alpha(units));
    EXPECT_NEAR(*krippendorff_alpha(units), 0.849, 5e-4);
    EXPECT_EQ(compared_units(units), 11u) << "the last has one value";
    EXPECT_FALSE(krippendorff_alpha(std::vector<std::vector<double>>{{1}, {2}}));
    EXPECT_FALSE(krippendorff_alpha(std::vector<std::vector<double>>{{2, 2}, {2, 2}}));
}

}  // namespace
}  // namespace atelier::eval
