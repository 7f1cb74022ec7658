#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>
#include <numbers>
#include <vector>

#include "core/error.hpp"
#include "core/parallel.hpp"
#include "flow/guidance.hpp"
#include "flow/noise.hpp"
#include "flow/sampler.hpp"
#include "flow/schedule.hpp"
#include "flow/step_choice.hpp"

namespace atelier::flow {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr std::array stochastic{Sampler::flow_sde, Sampler::dance_sde, Sampler::cps};

ScheduleConfig dynamic_config() {
    ScheduleConfig config;
    config.use_dynamic_shifting = true;
    config.max_shift = 0.9;
    config.max_image_seq_len = 8192;
    config.shift_terminal = 0.02;
    return config;
}

std::vector<float> normals(std::uint64_t stream, std::size_t n) {
    std::vector<float> values(n);
    fill_normal(random_key(7, RandomUse::test, stream), values);
    return values;
}

std::string message_of(const std::function<void()>& action) {
    try {
        action();
    } catch (const Error& error) {
        return error.message();
    }
    return "";
}

/// `values` again and again: a larger picture of the same elements.
std::vector<float> repeated(const std::vector<float>& values, std::size_t times) {
    std::vector<float> all;
    for (std::size_t i = 0; i < times; ++i) all.insert(all.end(), values.begin(), values.end());
    return all;
}

TEST(Sizes, NoPictureOutweighsASmallerOne) {
    // Per element, so that a picture six times as large has the same log p, the same pull on it and the same losses.
    const std::vector<float> sigmas{1.0f, 0.8f, 0.5f, 0.0f};
    const auto x = normals(1, 96), v = normals(2, 96), other = normals(3, 96), noise = normals(4, 96);
    const auto large_x = repeated(x, 6), large_v = repeated(v, 6), large_other = repeated(other, 6), large_noise = repeated(noise, 6);
    for (const Sampler sampler : stochastic)
        for (const LogProb kind : {LogProb::mean, LogProb::squared_error}) {
            const Transition t = transition(sampler, 0.7, sigmas, 1);
            std::vector<float> next(x.size()), large_next(large_x.size());
            const double small = *step_with_log_prob<float>(t, kind, x, v, noise, next),
                         large = *step_with_log_prob<float>(t, kind, large_x, large_v, large_noise, large_next);
            EXPECT_NEAR(large, small, 1e-6 * std::abs(small));
            std::vector<float> d_small(x.size(), 0.0f), d_large(large_x.size(), 0.0f);
            log_prob_backward<float>(t, kind, x, other, next, 1.0, d_small);
            log_prob_backward<float>(t, kind, large_x, large_other, large_next, 1.0, d_large);
            for (std::size_t i = 0; i < d_large.size(); ++i)
                ASSERT_NEAR(6 * d_large[i], d_small[i % x.size()], 1e-5 * (1 + std::abs(d_small[i % x.size()])));
            EXPECT_NEAR(gaussian_kl<float>(t, large_v, large_other), gaussian_kl<float>(t, v, other), 1e-6 * gaussian_kl<float>(t, v, other));
        }
    EXPECT_NEAR(velocity_mse<float>(large_v, large_other), velocity_mse<float>(v, other), 1e-6 * velocity_mse<float>(v, other));
}

TEST(Schedule, FallsFromOneToTerminalThenZero) {
    const Schedule schedule = make_schedule(dynamic_config(), 10, 64);
    ASSERT_EQ(schedule.sigmas.size(), 11u);
    EXPECT_EQ(schedule.steps(), 10);
    EXPECT_EQ(schedule.sigmas.front(), 1.0f);
    EXPECT_NEAR(schedule.sigmas[9], 0.02, 1e-7);
    EXPECT_EQ(schedule.sigmas.back(), 0.0f);
    EXPECT_TRUE(std::is_sorted(schedule.sigmas.rbegin(), schedule.sigmas.rend()));
}

TEST(Schedule, OneStepCannotBeStretched) {
    EXPECT_THAT(message_of([] { make_schedule(dynamic_config(), 1, 64); }),
                HasSubstr("shift_terminal = 0.02"));
}

TEST(Schedule, UnsupportedSettingsAreNamed) {
    for (const char* key : {"invert_sigmas", "stochastic_sampling", "use_karras_sigmas",
                            "use_exponential_sigmas", "use_beta_sigmas"}) {
        const std::string message = message_of([&] {
            parse_schedule_config({{key, true}}, "scheduler_config.json");
        });
        EXPECT_THAT(message, HasSubstr(key));
        EXPECT_THAT(message, HasSubstr("true"));
        EXPECT_THAT(message, HasSubstr("scheduler_config.json"));
        EXPECT_NO_THROW(parse_schedule_config({{key, false}}, "here"));
    }
    EXPECT_THAT(message_of([] {
                    parse_schedule_config({{"shfit", 3.0}}, "here");
                }),
                HasSubstr("\"shfit\""));
    EXPECT_THAT(message_of([] {
                    parse_schedule_config({{"shift", "3"}}, "here");
                }),
                HasSubstr("\"shift\""));
    EXPECT_THAT(message_of([] {
                    parse_schedule_config({{"time_shift_type", "cubic"}}, "here");
                }),
                HasSubstr("cubic"));
    EXPECT_THAT(message_of([] {
                    parse_schedule_config({{"_class_name", "DDIMScheduler"}}, "here");
                }),
                HasSubstr("DDIMScheduler"));
    const auto timesteps = [](int number) {
        return message_of([&] { parse_schedule_config({{"num_train_timesteps", number}}, "scheduler/scheduler_config.json"); });
    };
    EXPECT_EQ(timesteps(1000), "");
    EXPECT_THAT(timesteps(2000), AllOf(HasSubstr("scheduler/scheduler_config.json: \"num_train_timesteps\" must be 1000"), HasSubstr("2000")));
}

TEST(Sampler, WordsRoundTrip) {
    for (const Sampler sampler :
         {Sampler::ode, Sampler::flow_sde, Sampler::dance_sde, Sampler::cps})
        EXPECT_EQ(parse_sampler(name_of(sampler)), sampler);
    for (const LogProb kind : {LogProb::mean, LogProb::sum, LogProb::squared_error})
        EXPECT_EQ(parse_log_prob(name_of(kind)), kind);
    EXPECT_THAT(message_of([] { parse_sampler("ddim"); }), HasSubstr("ddim"));
}

TEST(Sampler, EtaZeroIsTheOde) {
    const Schedule schedule = make_schedule(dynamic_config(), 6, 64);
    for (const Sampler sampler : stochastic) {
        for (int i = 0; i < 6; ++i) {
            const Transition with = transition(sampler, 0.0, schedule.sigmas, i);
            const Transition ode = transition(Sampler::ode, 0.0, schedule.sigmas, i);
            EXPECT_FALSE(with.has_log_prob());
            EXPECT_NEAR(with.on_x, ode.on_x, 1e-15);
            EXPECT_NEAR(with.on_v, ode.on_v, 1e-15);
        }
    }
}

TEST(Sampler, ReplayGivesTheStoredLogProbabilityBitForBit) {
    const Schedule schedule = make_schedule(dynamic_config(), 8, 64);
    for (const std::size_t n : {1ul, 7ul, 8ul, 4097ul}) {
        const auto x = normals(1, n), v = normals(2, n), noise = normals(3, n);
        for (const Sampler sampler : stochastic) {
            for (int i = 0; i < 7; ++i) {
                const Transition t = transition(sampler, 0.7, schedule.sigmas, i);
                for (const LogProb kind : {LogProb::mean, LogProb::sum, LogProb::squared_error}) {
                    std::vector<float> next(n), again(n);
                    const auto stored = step_with_log_prob<float>(t, kind, x, v, noise, next);
                    ASSERT_TRUE(stored.has_value());
                    set_threads(2);
                    const Transition same = transition(sampler, 0.7, schedule.sigmas, i);
                    EXPECT_EQ(*stored, *log_prob<float>(same, kind, x, v, next));
                    set_threads(1);
                    step<float>(t, x, v, noise, again);
                    EXPECT_EQ(next, again);
                }
            }
        }
    }
}

TEST(Sampler, InPlaceStepIsTheSame) {
    const Schedule schedule = make_schedule(dynamic_config(), 5, 64);
    auto x = normals(1, 33);
    const auto v = normals(2, 33), noise = normals(3, 33);
    const Transition t = transition(Sampler::flow_sde, 0.5, schedule.sigmas, 2);
    std::vector<float> next(33);
    step<float>(t, x, v, noise, next);
    step<float>(t, x, v, noise, x);
    EXPECT_EQ(x, next);
}

TEST(Sampler, NoLogProbabilityWithoutNoise) {
    const Schedule schedule = make_schedule(dynamic_config(), 4, 64);
    const auto x = normals(1, 16), v = normals(2, 16);
    std::vector<float> next(16);
    const Transition last = transition(Sampler::cps, 1.0, schedule.sigmas, 3);
    EXPECT_EQ(last.std, 0.0);
    EXPECT_FALSE(step_with_log_prob<float>(last, LogProb::mean, x, v, {}, next).has_value());
    EXPECT_THROW(log_prob_backward<float>(last, LogProb::mean, x, v, next, 1.0, next), Error);
    EXPECT_THROW(gaussian_kl<float>(last, x, v), Error);
}

TEST(Sampler, BadArgumentsAreRejected) {
    const std::vector<float> sigmas{1.0f, 0.5f, 0.0f}, rising{0.5f, 0.6f};
    EXPECT_THROW(transition(Sampler::ode, 0.0, sigmas, 2), Error);
    EXPECT_THROW(transition(Sampler::ode, 0.0, sigmas, -1), Error);
    EXPECT_THROW(transition(Sampler::ode, 0.0, rising, 0), Error);
    EXPECT_THROW(transition(Sampler::flow_sde, -0.1, sigmas, 0), Error);
    EXPECT_THROW(transition(Sampler::cps, 1.5, sigmas, 0), Error);
}

/// exp(log p) integrates to 1 over x' (one element, trapezoids over +-12 std: exact to 1e-12).
double total_probability(const Transition& t, double log_p_error) {
    const double x = 0.3, v = -0.8;
    const double mean = mean_element(t.on_x, t.on_v, x, v);
    const int points = 4001;
    const double width = 24.0 * t.std / (points - 1);
    double sum = 0;
    for (int i = 0; i < points; ++i) {
        const double next = mean - 12.0 * t.std + i * width;
        sum += width * std::exp(*log_prob<double>(t, LogProb::sum, {&x, 1}, {&v, 1}, {&next, 1}) +
                                log_p_error);
    }
    return sum;
}

TEST(Sampler, DensityIntegratesToOne) {
    const Schedule schedule = make_schedule(dynamic_config(), 5, 64);
    for (const Sampler sampler : stochastic) {
        for (int i = 0; i < 4; ++i) {
            const Transition t = transition(sampler, 0.6, schedule.sigmas, i);
            EXPECT_NEAR(total_probability(t, 0.0), 1.0, 1e-9);
            EXPECT_GT(std::abs(total_probability(t, std::log(t.std)) - 1.0), 1e-3)
                << "-ln std left out goes unseen";
        }
    }
}

struct Moments {
    double mean = 0, variance = 0;
};

Moments moments_of(const std::vector<float>& values) {
    Moments m;
    for (const float value : values) m.mean += value;
    m.mean /= static_cast<double>(values.size());
    for (const float value : values) m.variance += (value - m.mean) * (value - m.mean);
    m.variance /= static_cast<double>(values.size());
    return m;
}

/// Within five standard errors of a Gaussian sample's mean and variance.
bool agrees(const Moments& found, const Moments& expected, std::size_t draws) {
    const double n = static_cast<double>(draws);
    return std::abs(found.mean - expected.mean) < 5.0 * std::sqrt(expected.variance / n) &&
           std::abs(found.variance - expected.variance) <
               5.0 * expected.variance * std::sqrt(2.0 / n);
}

TEST(Sampler, ManyDrawsHaveTheMeanAndVarianceOfTheTable) {
    const Schedule schedule = make_schedule(dynamic_config(), 4, 64);
    constexpr std::size_t draws = 200000;
    const std::vector<float> x(draws, 0.7f), v(draws, -1.3f);
    for (const Sampler sampler : stochastic) {
        for (int i = 0; i < 3; ++i) {
            const double eta = 0.6, s = schedule.sigmas[static_cast<std::size_t>(i)],
                         n = schedule.sigmas[static_cast<std::size_t>(i) + 1], delta = n - s;
            // Written out from the table of the design once more.
            Moments expected;
            if (sampler == Sampler::cps) {
                const double std = n * std::sin(eta * std::numbers::pi / 2.0);
                const double image = 0.7 + s * 1.3, noise = 0.7 - (1.0 - s) * 1.3;
                expected = {(1.0 - n) * image + std::sqrt(n * n - std * std) * noise, std * std};
            } else {
                const double bar = s == 1.0 ? schedule.sigmas[1] : s;
                const double g =
                    sampler == Sampler::flow_sde ? eta * std::sqrt(s / (1.0 - bar)) : eta;
                expected.mean = 0.7 * (1.0 + g * g * delta / (2.0 * s)) -
                                1.3 * (1.0 + g * g * (1.0 - s) / (2.0 * s)) * delta;
                expected.variance = -g * g * delta;
            }
            const Transition t = transition(sampler, eta, schedule.sigmas, i);
            std::vector<float> noise(draws), next(draws);
            fill_normal(step_noise_key(sample_noise_key(1, 2, 3, 4), i), noise);
            step<float>(t, x, v, noise, next);
            EXPECT_TRUE(agrees(moments_of(next), expected, draws))
                << name_of(sampler) << " step " << i;
            Transition wrong = t;
            wrong.std *= 1.02;
            step<float>(wrong, x, v, noise, next);
            EXPECT_FALSE(agrees(moments_of(next), expected, draws))
                << "a std 2 % too large goes unseen";
        }
    }
}

/// Data N(image_mean, image_std^2): the marginal at t and the exact velocity are known in closed
/// form.
struct GaussianToy {
    double image_mean = 0.8, image_std = 0.6;
    Moments marginal(double t) const {
        return {(1 - t) * image_mean, (1 - t) * (1 - t) * image_std * image_std + t * t};
    }
    /// E[noise - image | x] = slope x + offset.
    double slope(double t) const {
        return (t - (1 - t) * image_std * image_std) / marginal(t).variance;
    }
    double offset(double t) const { return -image_mean - slope(t) * (1 - t) * image_mean; }
};

std::vector<float> uniform_sigmas(int steps) {
    std::vector<float> sigmas;
    for (int i = 0; i <= steps; ++i)
        sigmas.push_back(static_cast<float>(1.0 - static_cast<double>(i) / steps));
    return sigmas;
}

/// Exact mean and variance after each step: the transition and the velocity are linear.
std::vector<Moments> exact_moments(const GaussianToy& toy, Sampler sampler, double eta, int steps) {
    const auto sigmas = uniform_sigmas(steps);
    std::vector<Moments> result{{0.0, 1.0}};
    for (int i = 0; i < steps; ++i) {
        const double t = sigmas[static_cast<std::size_t>(i)];
        const Transition step = transition(sampler, eta, sigmas, i);
        const double gain = step.on_x + step.on_v * toy.slope(t);
        const Moments last = result.back();
        result.push_back({gain * last.mean + step.on_v * toy.offset(t),
                          gain * gain * last.variance + step.std * step.std});
    }
    return result;
}

/// Largest relative difference of the variance, and difference of the mean, from the ODE's
/// marginals over the states with t <= t_max.
double largest_error(const GaussianToy& toy, Sampler sampler, double eta, int steps, double t_max) {
    const auto sigmas = uniform_sigmas(steps);
    const auto moments = exact_moments(toy, sampler, eta, steps);
    double error = 0;
    for (std::size_t i = 0; i < moments.size(); ++i) {
        if (sigmas[i] > t_max) continue;
        const Moments marginal = toy.marginal(sigmas[i]);
        error = std::max({error, std::abs(moments[i].mean - marginal.mean),
                          std::abs(moments[i].variance / marginal.variance - 1.0)});
    }
    return error;
}

TEST(GaussianToy, SampledTrajectoriesHaveTheOdesMarginalsAtEveryStep) {
    const GaussianToy toy;
    constexpr std::size_t draws = 40000;
    constexpr int steps = 100;
    const auto sigmas = uniform_sigmas(steps);
    for (const Sampler sampler : {Sampler::ode, Sampler::flow_sde, Sampler::dance_sde}) {
        const double eta = 0.3;
        std::vector<float> x(draws), v(draws), noise(draws);
        const RandomKey key = sample_noise_key(5, 0, 0, 0);
        fill_normal(initial_noise_key(key), x);
        for (int i = 0; i < steps; ++i) {
            const double t = sigmas[static_cast<std::size_t>(i)];
            const auto slope = static_cast<float>(toy.slope(t)),
                       offset = static_cast<float>(toy.offset(t));
            for (std::size_t j = 0; j < draws; ++j) v[j] = slope * x[j] + offset;
            fill_normal(step_noise_key(key, i), noise);
            step<float>(transition(sampler, eta, sigmas, i), x, v, noise, x);
            // Discretisation (first order in 1/steps, next test) leaves up to 2 %; Monte Carlo five
            // standard errors.
            const Moments found = moments_of(x),
                          marginal = toy.marginal(sigmas[static_cast<std::size_t>(i) + 1]);
            const double n = draws;
            EXPECT_NEAR(found.mean, marginal.mean, 0.02 + 5.0 * std::sqrt(marginal.variance / n))
                << name_of(sampler) << " step " << i;
            EXPECT_NEAR(found.variance / marginal.variance, 1.0, 0.02 + 5.0 * std::sqrt(2.0 / n))
                << name_of(sampler) << " step " << i;
            EXPECT_TRUE(agrees(
                found, exact_moments(toy, sampler, eta, steps)[static_cast<std::size_t>(i) + 1],
                draws))
                << name_of(sampler) << " step " << i;
        }
    }
}

TEST(GaussianToy, MarginalsConvergeToTheOdesWithTheNumberOfSteps) {
    const GaussianToy toy;
    for (const double eta : {0.3, 0.7, 1.0}) {
        const double coarse = largest_error(toy, Sampler::dance_sde, eta, 200, 1.0);
        const double fine = largest_error(toy, Sampler::dance_sde, eta, 400, 1.0);
        EXPECT_LT(fine, 0.55 * coarse) << eta;  // first order
        EXPECT_LT(fine, 0.01) << eta;
    }
    // flow_sde's g grows like 1/sqrt(1 - sigma): of the first steps each has a std of order eta at
    // any N (uniform sigmas: Delta/(1 - sigma_i) = -1/i, and -1 for i = 0), so their variance
    // follows (1 - eta^2/2i)^2 variance + eta^2/i whatever N is. That excess is the sampler's own;
    // it is forgotten like i^(-eta^2), so that it is gone at t = 1/2 for many steps only.
    for (const double eta : {0.3, 0.7, 1.0}) {
        constexpr int steps = 400;
        double variance = 1.0, excess = 0.0;
        for (int i = 0; i < steps / 2; ++i) {
            const double share = eta * eta / std::max(i, 1);
            variance = (1.0 - share / 2.0) * (1.0 - share / 2.0) * variance + share;
            excess = std::max(excess, variance - 1.0);
        }
        EXPECT_NEAR(largest_error(toy, Sampler::flow_sde, eta, 10 * steps, 1.0), excess, 0.01)
            << eta;
        EXPECT_LT(largest_error(toy, Sampler::flow_sde, eta, steps, 0.5), variance - 1.0 + 0.01)
            << eta;
    }
}

TEST(GaussianToy, CpsKeepsTheNoiseLevelOfEveryStep) {
    // With one image (std 0) both of its estimates are exact, and every state must be
    // (1 - t) image + t noise: mean and variance exactly, at any eta and any number of steps.
    GaussianToy toy;
    toy.image_std = 0.0;
    const auto moments = exact_moments(toy, Sampler::cps, 0.8, 7);
    const auto sigmas = uniform_sigmas(7);
    for (std::size_t i = 0; i < moments.size(); ++i) {
        EXPECT_NEAR(moments[i].mean, toy.marginal(sigmas[i]).mean, 1e-12);
        EXPECT_NEAR(moments[i].variance, toy.marginal(sigmas[i]).variance, 1e-12);
    }
}

TEST(GaussianToy, AWrongSignOfTheDriftIsSeen) {
    const GaussianToy toy;
    const auto sigmas = uniform_sigmas(400);
    double variance = 1.0, error = 0.0;
    for (int i = 0; i < 400; ++i) {
        const double t = sigmas[static_cast<std::size_t>(i)];
        const Transition right = transition(Sampler::dance_sde, 0.7, sigmas, i);
        const double on_x = 2.0 - right.on_x,
                     on_v = 2.0 * right.delta - right.on_v;  // drift turned round
        const double gain = on_x + on_v * toy.slope(t);
        variance = gain * gain * variance + right.std * right.std;
        const double marginal = toy.marginal(sigmas[static_cast<std::size_t>(i) + 1]).variance;
        error = std::max(error, std::abs(variance / marginal - 1.0));
    }
    EXPECT_GT(error, 0.1);
}

TEST(GaussianKl, IsTheExpectedLogRatioPerElement) {
    const Schedule schedule = make_schedule(dynamic_config(), 6, 64);
    const Transition t = transition(Sampler::flow_sde, 0.7, schedule.sigmas, 2);
    constexpr std::size_t n = 200000;
    const auto x = normals(1, n), v = normals(2, n), noise = normals(4, n);
    std::vector<float> other(n), next(n);
    for (std::size_t i = 0; i < n; ++i) other[i] = v[i] + 0.05f * x[i];
    const double log_p = *step_with_log_prob<float>(t, LogProb::mean, x, v, noise, next);
    const double log_q = *log_prob<float>(t, LogProb::mean, x, other, next);
    const double kl = gaussian_kl<float>(t, v, other);
    // log p - log q has mean kl and variance 2 kl / n.
    EXPECT_NEAR(log_p - log_q, kl, 5.0 * std::sqrt(2.0 * kl / static_cast<double>(n)));
    EXPECT_GT(kl, 1e-4);
}

TEST(Noise, KeysDifferByEveryMeaning) {
    const RandomKey sample = sample_noise_key(1, 2, 3, 4);
    EXPECT_EQ(sample, sample_noise_key(1, 2, 3, 4));
    for (const RandomKey other :
         {sample_noise_key(2, 2, 3, 4), sample_noise_key(1, 3, 3, 4), sample_noise_key(1, 2, 4, 4),
          sample_noise_key(1, 2, 3, 5), step_noise_key(sample, 0)})
        EXPECT_FALSE(sample == other);
    EXPECT_FALSE(step_noise_key(sample, 0) == step_noise_key(sample, 1));
}

TEST(StepChoice, AllLeavesOutStepsWithoutNoise) {
    const auto sigmas = make_schedule(dynamic_config(), 6, 64).sigmas;
    EXPECT_THAT(choose_steps({}, Sampler::flow_sde, 0.5, sigmas, 1, 0, 0),
                ::testing::ElementsAre(0, 1, 2, 3, 4, 5));
    EXPECT_THAT(choose_steps({}, Sampler::cps, 0.5, sigmas, 1, 0, 0),
                ::testing::ElementsAre(0, 1, 2, 3, 4));
    EXPECT_THROW(choose_steps({}, Sampler::ode, 0.5, sigmas, 1, 0, 0), Error);
    EXPECT_THROW(choose_steps({}, Sampler::cps, 0.0, sigmas, 1, 0, 0), Error);
    EXPECT_THROW(choose_steps({StepPolicy::subset, 6}, Sampler::cps, 0.5, sigmas, 1, 0, 0), Error);
    EXPECT_THROW(choose_steps({StepPolicy::window, 2, 4}, Sampler::cps, 0.5, sigmas, 1, 0, 0),
                 Error);
}

TEST(StepChoice, WindowIsContiguousAndSubsetIsWithoutReplacement) {
    const auto sigmas = make_schedule(dynamic_config(), 10, 64).sigmas;
    EXPECT_THAT(choose_steps({StepPolicy::window, 3, 2}, Sampler::flow_sde, 0.5, sigmas, 1, 0, 0),
                ::testing::ElementsAre(2, 3, 4));
    for (std::uint64_t iteration = 0; iteration < 200; ++iteration) {
        const auto window =
            choose_steps({StepPolicy::window, 4}, Sampler::cps, 0.5, sigmas, 1, iteration, 0);
        ASSERT_EQ(window.size(), 4u);
        EXPECT_EQ(window[3], window[0] + 3);
        EXPECT_LT(window[3], 9);
        const auto subset =
            choose_steps({StepPolicy::subset, 4}, Sampler::cps, 0.5, sigmas, 1, iteration, 0);
        ASSERT_EQ(subset.size(), 4u);
        for (std::size_t i = 1; i < 4; ++i) EXPECT_LT(subset[i - 1], subset[i]);
        EXPECT_LT(subset[3], 9);
        EXPECT_EQ(subset, choose_steps({StepPolicy::subset, 4}, Sampler::cps, 0.5, sigmas, 1,
                                       iteration, 0));
    }
}

TEST(StepChoice, FirstDrawFollowsTheWeights) {
    const std::vector<float> sigmas{1.0f, 0.75f, 0.5f, 0.25f, 0.0f};
    const double gamma = 2.0, total = 1.0 + 0.5625 + 0.25 + 0.0625;
    constexpr int draws = 20000;
    std::array<int, 4> counts{};
    for (int i = 0; i < draws; ++i)
        ++counts[static_cast<std::size_t>(choose_steps({StepPolicy::subset, 1, -1, gamma},
                                                       Sampler::dance_sde, 0.5, sigmas, 3,
                                                       static_cast<std::uint64_t>(i), 1)[0])];
    for (std::size_t i = 0; i < 4; ++i) {
        const double p = std::pow(sigmas[i], gamma) / total;
        EXPECT_NEAR(counts[i], draws * p, 5.0 * std::sqrt(draws * p * (1.0 - p))) << i;
    }
}

TEST(Guidance, IsTheLineThroughBothBranches) {
    const auto c = normals(1, 24), u = normals(2, 24);
    std::vector<float> out(24);
    guide<float>({1.0, false}, 6, c, u, out);
    for (std::size_t i = 0; i < 24; ++i) EXPECT_NEAR(out[i], c[i], 1e-6);
    guide<float>({3.5, false}, 6, c, u, out);
    for (std::size_t i = 0; i < 24; ++i) EXPECT_NEAR(out[i], u[i] + 3.5 * (c[i] - u[i]), 1e-5);
}

TEST(Guidance, RescaleKeepsTheNormOfEachToken) {
    const auto c = normals(1, 24), u = normals(2, 24);
    std::vector<float> out(24), plain(24);
    guide<float>({3.5, true}, 6, c, u, out);
    guide<float>({3.5, false}, 6, c, u, plain);
    for (std::size_t token = 0; token < 4; ++token) {
        double wanted = 0, found = 0, before = 0, along = 0;
        for (std::size_t i = token * 6; i < token * 6 + 6; ++i) {
            wanted += double(c[i]) * c[i];
            found += double(out[i]) * out[i];
            before += double(plain[i]) * plain[i];
            along += double(plain[i]) * out[i];
        }
        EXPECT_NEAR(found, wanted, 1e-5 * wanted);
        EXPECT_NEAR(along, std::sqrt(before * found), 1e-5 * along);  // the direction stays
    }
    std::vector<float> zero(6, 0.0f), result(6, 1.0f);
    guide<float>({2.0, true}, 6, zero, zero, result);
    EXPECT_EQ(result, zero);
}

}  // namespace
}  // namespace atelier::flow
