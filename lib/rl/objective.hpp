#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <string>

#include "flow/sampler.hpp"

namespace atelier::rl {

enum class KlKind {
    none,
    gaussian,
    velocity
};  ///< to the base: exact KL of the step, or velocity MSE
KlKind parse_kl_kind(const std::string& word);  ///< throws Error(usage)

struct ObjectiveConfig {
    double clip = 1e-4;       ///< c: the ratio is clipped to [1 - c, 1 + c]
    bool ratio_norm = false;  ///< GRPO-Guard
    KlKind kl = KlKind::none;
    double beta = 0.0;  ///< weight of the KL term
};

/// One (sample, step): loss = -min(rho A, clip(rho) A).
template <typename T>
struct SurrogateT {
    T loss = 0;
    T ratio = 1;           ///< rho
    T d_log_ratio = 0;     ///< d loss / d log rho = d loss / d log p_theta
    bool clipped = false;  ///< the clip took the gradient away
    bool outside = false;  ///< |rho - 1| > c, whatever the sign of A
};
using Surrogate = SurrogateT<double>;

/// PPO's clipped surrogate (arXiv 1707.06347) of rho = exp(log_ratio), one value per sample and
/// step.
template <typename T>
SurrogateT<T> clipped_surrogate(T log_ratio, T advantage, T clip) {
    SurrogateT<T> result;
    result.ratio = std::exp(log_ratio);
    const T free = result.ratio * advantage;
    const T low = 1 - clip, high = 1 + clip;
    const T bounded = (result.ratio < low    ? low
                       : result.ratio > high ? high
                                             : result.ratio) *
                      advantage;
    result.outside = result.ratio < low || result.ratio > high;
    result.clipped = bounded < free;
    result.loss = -(result.clipped ? bounded : free);
    result.d_log_ratio = result.clipped ? T(0) : -free;
    return result;
}

/// GRPO-Guard (arXiv 2510.22319): the log-ratio of one Gaussian step, freed of its bias
/// mean (mu - mu_old)^2 / 2std^2 and scaled by std so that all steps have one spread:
///     log rho = std (log p - log p_old + mean (mu - mu_old)^2 / 2std^2)
///             = mean (x' - mu_old)(mu - mu_old) / std      (for the mean log p)
/// and the loss of the step is weighted by 1 / -Delta. Written in the second form, which is linear
/// in mu and does not cancel. mu_old = x' - std noise, the noise regenerated from the step's key.
/// `noise`, `mean`, `x_next` [n]; returns log rho. The loss weight is `guard_weight`.
template <typename T>
double guard_log_ratio(const flow::Transition& transition, std::span<const T> x,
                       std::span<const T> v, std::span<const T> x_next, std::span<const T> noise);
/// d_v += scale * d log rho / d v = scale * on_v noise / n.
template <typename T>
void guard_log_ratio_backward(const flow::Transition& transition, std::span<const T> noise,
                              double scale, std::span<T> d_v);
double guard_weight(const flow::Transition& transition);

/// Sums over (sample, step) of one optimizer step; add() in a fixed order, merge() ranks in rank
/// order.
struct ObjectiveStats {
    double terms = 0, loss = 0, ratio = 0, ratio_deviation = 0, clipped = 0, outside = 0, kl = 0,
           ratio_min = 0, ratio_max = 0;
    void add(const Surrogate& term, double kl_value);
    void merge(const ObjectiveStats& other);
    double mean(double sum) const { return terms > 0 ? sum / terms : 0.0; }
};

}  // namespace atelier::rl
