// The reward pool: outcomes that don't depend on threads, retries, absence, refusal of broken
// scores.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <limits>

#include "core/error.hpp"
#include "reward/pool.hpp"

namespace atelier::reward {
namespace {

/// Scores a sample by its number; fails the first `failures` attempts at odd samples.
class Counting final : public Scorer {
  public:
    explicit Counting(int failures = 0, double value = 3.0) : failures_(failures), value_(value) {}
    const std::vector<std::string>& dimensions(const std::string&) const override { return names_; }
    Verdicts score(const Request& request, int attempt) const override {
        ++calls;
        const int now = ++running;
        int seen = most.load();
        while (now > seen && !most.compare_exchange_weak(seen, now)) {
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
        --running;
        ATELIER_CHECK_KIND(ErrorKind::reward, request.sample_id % 2 == 0 || attempt >= failures_,
                           "not yet");
        return {{"alignment",
                 {true, value_ == 3.0 ? 1.0 + static_cast<double>(request.sample_id % 4) : value_,
                  "counted"}}};
    }
    mutable std::atomic<int> calls{0}, running{0}, most{0};

  private:
    std::vector<std::string> names_{"alignment", "portrait"};
    int failures_;
    double value_;
};

std::vector<Outcome> run(const Scorer& scorer, const PoolConfig& config, int samples) {
    Pool pool(scorer, config);
    std::vector<std::future<Outcome>> futures;
    for (int i = 0; i < samples; ++i)
        futures.push_back(
            pool.submit({static_cast<std::uint64_t>(i), "t2i", "{}", 1, 1, {0, 0, 0, 255}}));
    std::vector<Outcome> outcomes;
    for (auto& f : futures) outcomes.push_back(f.get());
    return outcomes;
}

TEST(Pool, OutcomesDoNotDependOnWorkers) {
    for (const int workers : {1, 3, 16}) {
        const Counting scorer;
        const auto outcomes = run(scorer, {workers, 4, 0}, 40);
        for (std::size_t i = 0; i < outcomes.size(); ++i) {
            EXPECT_EQ(outcomes[i].verdicts.at("alignment").score, 1.0 + static_cast<double>(i % 4));
            EXPECT_FALSE(outcomes[i].verdicts.at("portrait").present)
                << "a dimension that the scorer left out is absent";
            EXPECT_EQ(outcomes[i].attempts, 1);
        }
        EXPECT_LE(scorer.most.load(), workers);
    }
}

TEST(Pool, RetriesAndThenSucceeds) {
    const Counting scorer(2);
    const auto outcomes = run(scorer, {4, 64, 2, 0.001}, 20);
    for (std::size_t i = 0; i < outcomes.size(); ++i) {
        EXPECT_FALSE(outcomes[i].failed);
        EXPECT_EQ(outcomes[i].attempts, i % 2 == 0 ? 1 : 3);
    }
}

TEST(Pool, ASampleThatKeepsFailingIsAbsentNotANumber) {
    const Counting scorer(9);
    const auto outcomes = run(scorer, {2, 64, 1, 0.001}, 6);
    EXPECT_EQ(scorer.calls.load(), 3 + 3 * 2);
    for (std::size_t i = 1; i < outcomes.size(); i += 2) {
        EXPECT_TRUE(outcomes[i].failed);
        for (const auto& [name, verdict] : outcomes[i].verdicts)
            EXPECT_FALSE(verdict.present) << name;
        EXPECT_THAT(outcomes[i].verdicts.at("alignment").reason,
                    ::testing::HasSubstr("failed after 2 attempts: not yet"));
    }
}

TEST(Pool, RefusesScoresThatAreNone) {
    for (const double bad : {std::numeric_limits<double>::quiet_NaN(),
                             std::numeric_limits<double>::infinity(), 0.5, 5.5}) {
        const Counting scorer(0, bad);
        EXPECT_THROW(run(scorer, {1, 4, 2}, 1), Error) << bad;
        EXPECT_EQ(scorer.calls.load(), 1) << "a broken scorer is not asked again";
    }
}

TEST(Pool, EndsWhileSamplesWait) {
    const Counting scorer;
    Pool pool(scorer, {1, 64, 0});
    for (int i = 0; i < 50; ++i)
        pool.submit({static_cast<std::uint64_t>(i), "t2i", "{}", 1, 1, {}});
}

TEST(FaultyScorer, FailsTheAskedShareAndTheSameOnesAgain) {
    const auto failed = [](double share, std::uint64_t seed) {
        const auto scorer = make_faulty_scorer(std::make_unique<Counting>(), {0, share, seed});
        std::vector<bool> result;
        for (const Outcome& o : run(*scorer, {4, 64, 0}, 200)) result.push_back(o.failed);
        return result;
    };
    const auto a = failed(0.3, 7);
    EXPECT_EQ(a, failed(0.3, 7));
    EXPECT_NE(a, failed(0.3, 8));
    EXPECT_NEAR(std::count(a.begin(), a.end(), true), 60, 25);
    EXPECT_EQ(std::count(a.begin(), a.end(), true), 200 - std::count(a.begin(), a.end(), false));
}

}  // namespace
}  // namespace atelier::reward
