#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <vector>

#include "core/philox.hpp"
#include "distill/loss.hpp"
#include "flow/guidance.hpp"
#include "flow/sampler.hpp"
#include "rl/objective.hpp"

namespace atelier::flow {
namespace {

using Values = std::vector<double>;
const std::vector<float> sigmas{1.0f, 0.8f, 0.5f, 0.2f, 0.0f};
constexpr std::size_t n = 12;

Values normals(std::uint64_t stream) {
    Values values(n);
    Random random(random_key(21, RandomUse::test, stream));
    for (double& value : values) value = random.normal();
    return values;
}

/// Largest |gradient - central difference| over the largest |gradient|, in fp64. Second order in a
/// step of 1e-5 and rounding of 1e-16 / 1e-5 leave about 1e-9.
double gradient_error(const std::function<double(const Values&)>& value, const Values& at,
                      const Values& gradient) {
    constexpr double h = 1e-5;
    double error = 0, scale = 0;
    for (std::size_t i = 0; i < at.size(); ++i) {
        Values up = at, down = at;
        up[i] += h;
        down[i] -= h;
        error = std::max(error, std::abs((value(up) - value(down)) / (2 * h) - gradient[i]));
        scale = std::max(scale, std::abs(gradient[i]));
    }
    return error / scale;
}
constexpr double tolerance = 1e-7;

TEST(FlowGradient, LogProbability) {
    const Values x = normals(1), v = normals(2), next = normals(3);
    for (const Sampler sampler : {Sampler::flow_sde, Sampler::dance_sde, Sampler::cps}) {
        for (int i = 0; i < 3; ++i) {
            const Transition t = transition(sampler, 0.7, sigmas, i);
            for (const LogProb kind : {LogProb::mean, LogProb::sum, LogProb::squared_error}) {
                Values d_v(n, 0.0), twice(n, 0.0);
                log_prob_backward<double>(t, kind, x, v, next, 1.3, d_v);
                const auto value = [&](const Values& at) {
                    return 1.3 * *log_prob<double>(t, kind, x, at, next);
                };
                EXPECT_LT(gradient_error(value, v, d_v), tolerance)
                    << name_of(sampler) << " " << name_of(kind);
                log_prob_backward<double>(t, kind, x, v, next, 1.3, twice);
                log_prob_backward<double>(t, kind, x, v, next, 1.3, twice);
                for (std::size_t j = 0; j < n; ++j)
                    EXPECT_NEAR(twice[j], 2.0 * d_v[j], 1e-12 * std::abs(d_v[j]));
                for (double& g : d_v) g = -g;
                EXPECT_GT(gradient_error(value, v, d_v), 1.0) << "a wrong sign goes unseen";
            }
        }
    }
}

TEST(FlowGradient, KlAndVelocityLosses) {
    const Values v = normals(2), other = normals(4);
    const Transition t = transition(Sampler::flow_sde, 0.7, sigmas, 1);
    Values d_v(n, 0.0);
    gaussian_kl_backward<double>(t, v, other, 0.7, d_v);
    EXPECT_LT(
        gradient_error([&](const Values& at) { return 0.7 * gaussian_kl<double>(t, at, other); }, v,
                       d_v),
        tolerance);
    for (const auto kind : {distill::LossKind::velocity, distill::LossKind::kl}) {
        Values gradient(n, 0.0), unused(n);
        distill::loss<double>(kind, t, v, other, 1.0, gradient);
        EXPECT_LT(gradient_error(
                      [&](const Values& at) {
                          return distill::loss<double>(kind, t, at, other, 0.0, unused);
                      },
                      v, gradient),
                  tolerance);
    }
}

TEST(FlowGradient, Guidance) {
    const Values c = normals(5), u = normals(6), weight = normals(7);
    for (const bool rescale : {false, true}) {
        for (const double scale : {1.0, 4.0}) {
            const Guidance guidance{scale, rescale};
            const auto value = [&](const Values& conditional, const Values& unconditional) {
                Values out(n);
                guide<double>(guidance, 4, conditional, unconditional, out);
                double sum = 0;
                for (std::size_t i = 0; i < n; ++i) sum += weight[i] * out[i];
                return sum;
            };
            Values d_c(n, 0.0), d_u(n, 0.0);
            guide_backward<double>(guidance, 4, c, u, weight, d_c, d_u);
            EXPECT_LT(gradient_error([&](const Values& at) { return value(at, u); }, c, d_c),
                      tolerance);
            if (scale != 1.0) {
                EXPECT_LT(gradient_error([&](const Values& at) { return value(c, at); }, u, d_u),
                          tolerance);
            }
        }
    }
}

TEST(RlGradient, SurrogateOnEverySideOfTheClip) {
    for (const double advantage : {1.4, -0.6}) {
        for (const double log_ratio : {-0.3, -0.05, 0.0, 0.05, 0.3}) {
            const auto value = [&](double at) {
                return rl::clipped_surrogate(at, advantage, 0.1).loss;
            };
            const double h = 1e-6, slope = (value(log_ratio + h) - value(log_ratio - h)) / (2 * h);
            EXPECT_NEAR(rl::clipped_surrogate(log_ratio, advantage, 0.1).d_log_ratio, slope, 1e-8);
        }
    }
}

TEST(RlGradient, GuardLogRatio) {
    const Values x = normals(1), v = normals(2), noise = normals(8);
    Values next(n), d_v(n, 0.0);
    const Transition t = transition(Sampler::flow_sde, 0.7, sigmas, 2);
    step<double>(t, x, normals(9), noise, next);
    rl::guard_log_ratio_backward<double>(t, noise, 2.0, d_v);
    EXPECT_LT(gradient_error(
                  [&](const Values& at) {
                      return 2.0 * rl::guard_log_ratio<double>(t, x, at, next, noise);
                  },
                  v, d_v),
              tolerance);
}

}  // namespace
}  // namespace atelier::flow
