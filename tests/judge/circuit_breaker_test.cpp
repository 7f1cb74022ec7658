#include "judge/circuit_breaker.hpp"

#include <gtest/gtest.h>

namespace atelier::judge {
namespace {

using Advice = CircuitBreaker::Advice;

CircuitBreaker::Clock::time_point at(double seconds) {
    return CircuitBreaker::Clock::time_point(
        std::chrono::duration_cast<CircuitBreaker::Clock::duration>(
            std::chrono::duration<double>(seconds)));
}

TEST(CircuitBreaker, OpensAfterFailuresInARow) {
    CircuitBreaker breaker({3, 5, 100});
    breaker.failed(at(0));
    breaker.failed(at(0));
    breaker.succeeded();
    breaker.failed(at(1));
    breaker.failed(at(1));
    EXPECT_EQ(breaker.advise(at(1)), Advice::ask);
    breaker.failed(at(1));
    EXPECT_TRUE(breaker.is_open());
    EXPECT_EQ(breaker.advise(at(1)), Advice::wait);
    breaker.failed(at(4));  // was under way when it opened: moves nothing
    EXPECT_EQ(breaker.advise(at(5.9)), Advice::wait);
    EXPECT_EQ(breaker.advise(at(6)), Advice::ask);
}

TEST(CircuitBreaker, OneTrialAtATime) {
    CircuitBreaker breaker({1, 5, 100});
    breaker.failed(at(0));
    EXPECT_EQ(breaker.advise(at(5)), Advice::ask);
    EXPECT_EQ(breaker.advise(at(5)), Advice::wait) << "the trial is under way";
    breaker.failed(at(7));
    EXPECT_EQ(breaker.advise(at(11)), Advice::wait);
    EXPECT_EQ(breaker.advise(at(12)), Advice::ask);
    breaker.succeeded();
    EXPECT_FALSE(breaker.is_open());
    for (int i = 0; i < 3; ++i) EXPECT_EQ(breaker.advise(at(12)), Advice::ask);
}

TEST(CircuitBreaker, GivesUpAfterALongOutageButForATrialAPause) {
    CircuitBreaker breaker({1, 5, 20});
    EXPECT_FALSE(breaker.gives_up(at(100))) << "nothing has failed";
    breaker.failed(at(0));
    for (const double t : {5.0, 10.0, 15.0}) {
        EXPECT_EQ(breaker.advise(at(t)), Advice::ask);
        breaker.failed(at(t));
    }
    EXPECT_EQ(breaker.advise(at(19)), Advice::wait);
    EXPECT_FALSE(breaker.gives_up(at(19)));
    EXPECT_TRUE(breaker.gives_up(at(20)));
    EXPECT_EQ(breaker.advise(at(20)), Advice::ask) << "a trial";
    EXPECT_EQ(breaker.advise(at(20)), Advice::give_up) << "all others";
    breaker.failed(at(21));
    EXPECT_EQ(breaker.advise(at(25)), Advice::give_up);
    EXPECT_EQ(breaker.advise(at(26)), Advice::ask);
    breaker.succeeded();
    EXPECT_FALSE(breaker.gives_up(at(26)));
    for (int i = 0; i < 3; ++i) EXPECT_EQ(breaker.advise(at(26)), Advice::ask) << "it came back";
    breaker.failed(at(30));
    EXPECT_EQ(breaker.advise(at(31)), Advice::wait) << "another outage has a time of its own";
}

}  // namespace
}  // namespace atelier::judge
