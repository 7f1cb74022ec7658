#pragma once

#include <span>
#include <string>

#include "flow/sampler.hpp"

namespace atelier::distill {

/// velocity: mean ||v - v_teacher||^2 (Flow-OPD, arXiv 2605.08063). kl: exact Gaussian KL of the
/// transition's means (DiffusionOPD, arXiv 2605.15055) = on_v^2 / 2std^2 of the former, step by
/// step.
enum class LossKind { velocity, kl };
LossKind parse_loss_kind(const std::string& word);  ///< throws Error(usage)
const char* name_of(LossKind kind);

/// Loss of one sample at one step, mean over its n elements; d_v += scale * d loss / d v.
/// `transition`: of the sampler that made the states. `kl` needs std > 0, else Error(internal):
/// ask `transition.has_log_prob()` and leave the step out.
template <typename T>
double loss(LossKind kind, const flow::Transition& transition, std::span<const T> v,
            std::span<const T> v_teacher, double scale, std::span<T> d_v);

}  // namespace atelier::distill
