#include "rl/objective.hpp"

#include <algorithm>

#include "core/error.hpp"
#include "flow/on_device.hpp"
#include "flow/reduce.hpp"

namespace atelier::rl {

KlKind parse_kl_kind(const std::string& word) {
    if (word == "none") return KlKind::none;
    if (word == "gaussian") return KlKind::gaussian;
    if (word == "velocity") return KlKind::velocity;
    ATELIER_FAIL(ErrorKind::usage, "kl must be none, gaussian or velocity, found \"{}\"", word);
}

template <typename T>
double guard_log_ratio(const flow::Transition& transition, std::span<const T> x,
                       std::span<const T> v, std::span<const T> x_next, std::span<const T> noise) {
    ATELIER_CHECK(transition.has_log_prob(), "a step with standard deviation 0 has no ratio");
    ATELIER_CHECK(
        !x.empty() && v.size() == x.size() && x_next.size() == x.size() && noise.size() == x.size(),
        "x {}, v {}, x_next {}, noise {} elements: one size is needed", x.size(), v.size(),
        x_next.size(), noise.size());
    const T on_x = static_cast<T>(transition.on_x), on_v = static_cast<T>(transition.on_v);
    const T std = static_cast<T>(transition.std);
    if constexpr (std::is_same_v<T, float>)
        if (flow::runs_on_device<T>())
            return ops::sum_from_device([&](double* sum) {
                       ops::backend().guard_sums(1, static_cast<std::int64_t>(x.size()), flow::in_fp32(transition), x.data(), v.data(),
                                                 x_next.data(), noise.data(), sum);
                   }) /
                   static_cast<double>(x.size());
    // x' - mu_old = std noise, so mu - mu_old = std noise - (x' - mu).
    const double sum = flow::ordered_sum(x.size(), [&](std::size_t i) {
        const T residual = x_next[i] - flow::mean_element(on_x, on_v, x[i], v[i]);
        return static_cast<double>(noise[i]) *
               static_cast<double>(std::fma(std, noise[i], -residual));
    });
    return sum / static_cast<double>(x.size());
}

template <typename T>
void guard_log_ratio_backward(const flow::Transition& transition, std::span<const T> noise,
                              double scale, std::span<T> d_v) {
    ATELIER_CHECK(noise.size() == d_v.size() && !noise.empty(), "noise {} and d_v {} elements",
                  noise.size(), d_v.size());
    const T factor = static_cast<T>(scale * transition.on_v / static_cast<double>(noise.size()));
    if constexpr (std::is_same_v<T, float>)
        if (flow::runs_on_device<T>())
            return ops::backend().difference_gradient(static_cast<std::int64_t>(noise.size()), factor, noise.data(), nullptr, d_v.data());
    for (std::size_t i = 0; i < noise.size(); ++i) d_v[i] = std::fma(factor, noise[i], d_v[i]);
}

double guard_weight(const flow::Transition& transition) { return -1.0 / transition.delta; }

template double guard_log_ratio<float>(const flow::Transition&, std::span<const float>,
                                       std::span<const float>, std::span<const float>,
                                       std::span<const float>);
template double guard_log_ratio<double>(const flow::Transition&, std::span<const double>,
                                        std::span<const double>, std::span<const double>,
                                        std::span<const double>);
template void guard_log_ratio_backward<float>(const flow::Transition&, std::span<const float>,
                                              double, std::span<float>);
template void guard_log_ratio_backward<double>(const flow::Transition&, std::span<const double>,
                                               double, std::span<double>);

void ObjectiveStats::add(const Surrogate& term, double kl_value) {
    ratio_min = terms > 0 ? std::min(ratio_min, term.ratio) : term.ratio;
    ratio_max = terms > 0 ? std::max(ratio_max, term.ratio) : term.ratio;
    terms += 1;
    loss += term.loss;
    ratio += term.ratio;
    ratio_deviation += std::abs(term.ratio - 1.0);
    clipped += term.clipped ? 1 : 0;
    outside += term.outside ? 1 : 0;
    kl += kl_value;
}

void ObjectiveStats::merge(const ObjectiveStats& other) {
    if (other.terms == 0) return;
    ratio_min = terms > 0 ? std::min(ratio_min, other.ratio_min) : other.ratio_min;
    ratio_max = terms > 0 ? std::max(ratio_max, other.ratio_max) : other.ratio_max;
    terms += other.terms;
    loss += other.loss;
    ratio += other.ratio;
    ratio_deviation += other.ratio_deviation;
    clipped += other.clipped;
    outside += other.outside;
    kl += other.kl;
}

}  // namespace atelier::rl
