#pragma once

#include <cmath>
#include <optional>
#include <span>
#include <string>

#include "flow/reduce.hpp"

namespace atelier::flow {

/// ode: Euler. flow_sde: Flow-GRPO (arXiv 2505.05470). dance_sde: DanceGRPO (2505.07818).
/// cps: Flow-CPS (2509.05952), which keeps the schedule's noise level in every state.
enum class Sampler { ode, flow_sde, dance_sde, cps };

/// Reduction of the Gaussian log-density over the elements of one sample.
/// mean: as Flow-GRPO and DanceGRPO publish it. sum: the density itself.
/// squared_error: -mean (x' - mean)^2, as Flow-CPS publishes it (no 1/2std^2, no constants).
enum class LogProb { mean, sum, squared_error };

/// Throw Error(usage) naming the allowed words.
Sampler parse_sampler(const std::string& word);
LogProb parse_log_prob(const std::string& word);
const char* name_of(Sampler sampler);
const char* name_of(LogProb log_prob);

/// One transition x_i -> x_{i+1} ~ N(mean, std^2), mean = on_x x + on_v v: every sampler's mean is
/// linear in state and velocity. std = 0: deterministic, there is no log p.
struct Transition {
    double on_x = 1, on_v = 0, std = 0;
    double delta = 0;  ///< sigma_{i+1} - sigma_i < 0
    bool has_log_prob() const { return std > 0.0; }
};

/// Transition of step `index` (0 <= index < N) of a schedule `sigmas` [N + 1]. flow_sde at sigma =
/// 1 takes 1 - sigmas[1] for 1 - sigma under g's root, and only there. Throws Error(usage): index
/// out of range, sigmas that do not fall, eta < 0, or eta > 1 with cps (std would exceed sigma').
Transition transition(Sampler sampler, double eta, std::span<const float> sigmas, int index);

// What takes spans of fp32 numbers runs where the calling thread's operations run: on a device they are its memory.

/// The mean of one element, in the precision of T; the only place where it is written.
template <typename T>
inline T mean_element(T on_x, T on_v, T x, T v) {
    return std::fma(on_v, v, on_x * x);
}

/// mean [n] of the next state from x, v [n].
template <typename T>
void step_mean(const Transition& transition, std::span<const T> x, std::span<const T> v,
               std::span<T> mean);

/// log p(x_next | x, v), spans of n elements of one sample. Elements in T (T = float in the
/// programs, double in gradient checks), the sum over elements in double in a fixed order: a
/// function of the numbers alone, whatever the threads. None where std = 0.
template <typename T>
std::optional<double> log_prob(const Transition& transition, LogProb kind, std::span<const T> x,
                               std::span<const T> v, std::span<const T> x_next);

/// x_next = mean + std noise, then `log_prob` of that stored x_next: replaying gives the same bits.
/// `noise` may be empty where std = 0. x_next may be x.
template <typename T>
void step(const Transition& transition, std::span<const T> x, std::span<const T> v,
          std::span<const T> noise, std::span<T> x_next);

/// `step` followed by `log_prob`; x_next must not be x.
template <typename T>
std::optional<double> step_with_log_prob(const Transition& transition, LogProb kind,
                                         std::span<const T> x, std::span<const T> v,
                                         std::span<const T> noise, std::span<T> x_next);

/// d_v += scale * d log p / d v. Throws Error(internal) where std = 0.
template <typename T>
void log_prob_backward(const Transition& transition, LogProb kind, std::span<const T> x,
                       std::span<const T> v, std::span<const T> x_next, double scale,
                       std::span<T> d_v);

/// KL(N(mean(v), std^2) || N(mean(v_ref), std^2)) / n = on_v^2 mean (v - v_ref)^2 / (2 std^2), from
/// the same state x. Exact; per element, like the mean log p. Throws Error(internal) where std = 0.
template <typename T>
double gaussian_kl(const Transition& transition, std::span<const T> v, std::span<const T> v_ref);
/// d_v += scale * d KL / d v.
template <typename T>
void gaussian_kl_backward(const Transition& transition, std::span<const T> v,
                          std::span<const T> v_ref, double scale, std::span<T> d_v);

/// mean (v - v_ref)^2 over elements, and d_v += scale * its gradient.
template <typename T>
double velocity_mse(std::span<const T> v, std::span<const T> v_ref);
template <typename T>
void velocity_mse_backward(std::span<const T> v, std::span<const T> v_ref, double scale,
                           std::span<T> d_v);

}  // namespace atelier::flow
