#include "flow/sampler.hpp"

#include <numbers>

#include "core/error.hpp"
#include "flow/on_device.hpp"

namespace atelier::flow {
namespace {

const double half_log_two_pi = 0.5 * std::log(2.0 * std::numbers::pi);

template <typename... Spans>
void check_sizes(std::size_t n, const Spans&... spans) {
    ATELIER_CHECK(n > 0 && ((spans.size() == n) && ...),
                  "spans of one sample must have one size, {} and more", n);
}

/// d log p / d mean = factor * (x' - mean).
double residual_factor(const Transition& transition, LogProb kind, std::size_t n) {
    const double count = static_cast<double>(n), variance = transition.std * transition.std;
    switch (kind) {
        case LogProb::mean:
            return 1.0 / (variance * count);
        case LogProb::sum:
            return 1.0 / variance;
        case LogProb::squared_error:
            return 2.0 / count;
    }
    ATELIER_FAIL(ErrorKind::internal, "unknown log p kind {}", static_cast<int>(kind));
}

}  // namespace

Sampler parse_sampler(const std::string& word) {
    for (const Sampler sampler :
         {Sampler::ode, Sampler::flow_sde, Sampler::dance_sde, Sampler::cps})
        if (word == name_of(sampler)) return sampler;
    ATELIER_FAIL(ErrorKind::usage, "sampler must be ode, flow_sde, dance_sde or cps, found \"{}\"",
                 word);
}

LogProb parse_log_prob(const std::string& word) {
    for (const LogProb kind : {LogProb::mean, LogProb::sum, LogProb::squared_error})
        if (word == name_of(kind)) return kind;
    ATELIER_FAIL(ErrorKind::usage, "log_prob must be mean, sum or squared_error, found \"{}\"",
                 word);
}

const char* name_of(Sampler sampler) {
    switch (sampler) {
        case Sampler::ode:
            return "ode";
        case Sampler::flow_sde:
            return "flow_sde";
        case Sampler::dance_sde:
            return "dance_sde";
        case Sampler::cps:
            return "cps";
    }
    return "unknown";
}

const char* name_of(LogProb log_prob) {
    switch (log_prob) {
        case LogProb::mean:
            return "mean";
        case LogProb::sum:
            return "sum";
        case LogProb::squared_error:
            return "squared_error";
    }
    return "unknown";
}

Transition transition(Sampler sampler, double eta, std::span<const float> sigmas, int index) {
    ATELIER_CHECK_USAGE(index >= 0 && static_cast<std::size_t>(index) + 1 < sigmas.size(),
                        "step {} of a schedule of {} steps", index,
                        static_cast<long>(sigmas.size()) - 1);
    const double sigma = sigmas[static_cast<std::size_t>(index)];
    const double next = sigmas[static_cast<std::size_t>(index) + 1];
    ATELIER_CHECK_USAGE(sigma <= 1.0 && next >= 0.0 && next < sigma,
                        "sigmas must fall within [0, 1], found {} then {} at step {}", sigma, next,
                        index);
    ATELIER_CHECK_USAGE(eta >= 0.0 && std::isfinite(eta), "eta must be at least 0, found {}", eta);
    Transition result;
    result.delta = next - sigma;
    result.on_v = result.delta;
    if (sampler == Sampler::cps) {
        ATELIER_CHECK_USAGE(eta <= 1.0, "eta of cps must lie in [0, 1], found {}", eta);
        result.std = next * std::sin(eta * std::numbers::pi / 2.0);
        const double kept = std::sqrt(next * next - result.std * result.std);
        result.on_x = (1.0 - next) + kept;
        result.on_v = kept * (1.0 - sigma) - (1.0 - next) * sigma;
    } else if (sampler != Sampler::ode) {
        const double at = sigma == 1.0 ? static_cast<double>(sigmas[1]) : sigma;
        const double g = sampler == Sampler::flow_sde ? eta * std::sqrt(sigma / (1.0 - at)) : eta;
        const double drift = g * g / (2.0 * sigma);
        result.std = g * std::sqrt(-result.delta);
        result.on_x = 1.0 + drift * result.delta;
        result.on_v = (1.0 + drift * (1.0 - sigma)) * result.delta;
    }
    return result;
}

template <typename T>
void step_mean(const Transition& transition, std::span<const T> x, std::span<const T> v,
               std::span<T> mean) {
    check_sizes(x.size(), v, mean);
    const T on_x = static_cast<T>(transition.on_x), on_v = static_cast<T>(transition.on_v);
    for (std::size_t i = 0; i < x.size(); ++i) mean[i] = mean_element(on_x, on_v, x[i], v[i]);
}

namespace {

template <typename T>
double squared_residuals(const Transition& transition, std::span<const T> x, std::span<const T> v, std::span<const T> x_next) {
    if constexpr (std::is_same_v<T, float>)
        if (runs_on_device<T>())
            return ops::sum_from_device([&](double* sum) {
                ops::backend().squared_residuals(1, static_cast<std::int64_t>(x.size()), in_fp32(transition), x.data(), v.data(), x_next.data(), sum);
            });
    const T on_x = static_cast<T>(transition.on_x), on_v = static_cast<T>(transition.on_v);
    return ordered_sum(x.size(), [&](std::size_t i) {
        const double residual =
            static_cast<double>(x_next[i] - mean_element(on_x, on_v, x[i], v[i]));
        return residual * residual;
    });
}

}  // namespace

template <typename T>
std::optional<double> log_prob(const Transition& transition, LogProb kind, std::span<const T> x,
                               std::span<const T> v, std::span<const T> x_next) {
    check_sizes(x.size(), v, x_next);
    if (!transition.has_log_prob()) return std::nullopt;
    const double squares = squared_residuals(transition, x, v, x_next), count = static_cast<double>(x.size());
    if (kind == LogProb::squared_error) return -squares / count;
    const double mean = -squares / count / (2.0 * transition.std * transition.std) -
                        std::log(transition.std) - half_log_two_pi;
    return kind == LogProb::sum ? mean * count : mean;
}

template <typename T>
void step(const Transition& transition, std::span<const T> x, std::span<const T> v,
          std::span<const T> noise, std::span<T> x_next) {
    check_sizes(x.size(), v, x_next);
    if (transition.has_log_prob()) check_sizes(x.size(), noise);
    if constexpr (std::is_same_v<T, float>)
        if (runs_on_device<T>())
            return ops::backend().sampler_step(1, static_cast<std::int64_t>(x.size()), in_fp32(transition), x.data(), v.data(),
                                               transition.has_log_prob() ? noise.data() : nullptr, x_next.data(), nullptr);
    const T on_x = static_cast<T>(transition.on_x), on_v = static_cast<T>(transition.on_v);
    if (!transition.has_log_prob()) {
        for (std::size_t i = 0; i < x.size(); ++i) x_next[i] = mean_element(on_x, on_v, x[i], v[i]);
        return;
    }
    const T std = static_cast<T>(transition.std);
    for (std::size_t i = 0; i < x.size(); ++i)
        x_next[i] = std::fma(std, noise[i], mean_element(on_x, on_v, x[i], v[i]));
}

template <typename T>
std::optional<double> step_with_log_prob(const Transition& transition, LogProb kind,
                                         std::span<const T> x, std::span<const T> v,
                                         std::span<const T> noise, std::span<T> x_next) {
    ATELIER_CHECK(x.data() != x_next.data(),
                  "the state is still needed for log p: x_next must be another span");
    step<T>(transition, x, v, noise, x_next);
    return log_prob<T>(transition, kind, x, v, x_next);
}

template <typename T>
void log_prob_backward(const Transition& transition, LogProb kind, std::span<const T> x,
                       std::span<const T> v, std::span<const T> x_next, double scale,
                       std::span<T> d_v) {
    check_sizes(x.size(), v, x_next, d_v);
    ATELIER_CHECK(transition.has_log_prob(),
                  "a step with standard deviation 0 has no log p and no gradient");
    const T on_x = static_cast<T>(transition.on_x), on_v = static_cast<T>(transition.on_v);
    const T factor =
        static_cast<T>(scale * residual_factor(transition, kind, x.size()) * transition.on_v);
    if constexpr (std::is_same_v<T, float>)
        if (runs_on_device<T>())
            return ops::backend().residual_gradient(static_cast<std::int64_t>(x.size()), in_fp32(transition), factor, x.data(), v.data(),
                                                    x_next.data(), d_v.data());
    for (std::size_t i = 0; i < x.size(); ++i)
        d_v[i] = std::fma(factor, x_next[i] - mean_element(on_x, on_v, x[i], v[i]), d_v[i]);
}

template <typename T>
double velocity_mse(std::span<const T> v, std::span<const T> v_ref) {
    check_sizes(v.size(), v_ref);
    if constexpr (std::is_same_v<T, float>)
        if (runs_on_device<T>())
            return ops::sum_from_device([&](double* sum) {
                       ops::backend().squared_differences(1, static_cast<std::int64_t>(v.size()), v.data(), v_ref.data(), sum);
                   }) /
                   static_cast<double>(v.size());
    const double squares = ordered_sum(v.size(), [&](std::size_t i) {
        const double difference = static_cast<double>(v[i] - v_ref[i]);
        return difference * difference;
    });
    return squares / static_cast<double>(v.size());
}

template <typename T>
void velocity_mse_backward(std::span<const T> v, std::span<const T> v_ref, double scale,
                           std::span<T> d_v) {
    check_sizes(v.size(), v_ref, d_v);
    const T factor = static_cast<T>(2.0 * scale / static_cast<double>(v.size()));
    if constexpr (std::is_same_v<T, float>)
        if (runs_on_device<T>())
            return ops::backend().difference_gradient(static_cast<std::int64_t>(v.size()), factor, v.data(), v_ref.data(), d_v.data());
    for (std::size_t i = 0; i < v.size(); ++i) d_v[i] = std::fma(factor, v[i] - v_ref[i], d_v[i]);
}

namespace {
double kl_per_mse(const Transition& transition) {
    ATELIER_CHECK(transition.has_log_prob(), "a step with standard deviation 0 has no Gaussian KL");
    const double ratio = transition.on_v / transition.std;
    return 0.5 * ratio * ratio;
}
}  // namespace

template <typename T>
double gaussian_kl(const Transition& transition, std::span<const T> v, std::span<const T> v_ref) {
    return kl_per_mse(transition) * velocity_mse<T>(v, v_ref);
}

template <typename T>
void gaussian_kl_backward(const Transition& transition, std::span<const T> v,
                          std::span<const T> v_ref, double scale, std::span<T> d_v) {
    velocity_mse_backward<T>(v, v_ref, scale * kl_per_mse(transition), d_v);
}

#define ATELIER_INSTANTIATE(T)                                                                   \
    template void step_mean<T>(const Transition&, std::span<const T>, std::span<const T>,        \
                               std::span<T>);                                                    \
    template std::optional<double> log_prob<T>(const Transition&, LogProb, std::span<const T>,   \
                                               std::span<const T>, std::span<const T>);          \
    template void step<T>(const Transition&, std::span<const T>, std::span<const T>,             \
                          std::span<const T>, std::span<T>);                                     \
    template std::optional<double> step_with_log_prob<T>(const Transition&, LogProb,             \
                                                         std::span<const T>, std::span<const T>, \
                                                         std::span<const T>, std::span<T>);      \
    template void log_prob_backward<T>(const Transition&, LogProb, std::span<const T>,           \
                                       std::span<const T>, std::span<const T>, double,           \
                                       std::span<T>);                                            \
    template double gaussian_kl<T>(const Transition&, std::span<const T>, std::span<const T>);   \
    template void gaussian_kl_backward<T>(const Transition&, std::span<const T>,                 \
                                          std::span<const T>, double, std::span<T>);             \
    template double velocity_mse<T>(std::span<const T>, std::span<const T>);                     \
    template void velocity_mse_backward<T>(std::span<const T>, std::span<const T>, double,       \
                                           std::span<T>);

ATELIER_INSTANTIATE(float)
ATELIER_INSTANTIATE(double)
#undef ATELIER_INSTANTIATE

}  // namespace atelier::flow
