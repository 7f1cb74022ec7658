#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "flow/sampler.hpp"

namespace atelier::flow {

/// Which steps are SDE and trained; the others are ODE.
/// all: every step that has a log p. window: `count` neighbouring steps. subset: `count` steps
/// drawn without replacement, each draw with weight sigma^gamma among those left (gamma > 0 leans
/// to noise).
enum class StepPolicy { all, window, subset };

StepPolicy parse_step_policy(const std::string& word);
const char* name_of(StepPolicy policy);

struct StepChoice {
    StepPolicy policy = StepPolicy::all;
    int count = 1;          ///< window, subset
    int window_begin = -1;  ///< window: first step; -1: drawn, weight = its sigma^gamma
    double gamma = 1.0;     ///< 0: uniform
};

/// Chosen steps, rising. One draw per (seed, iteration, task): the same for all members of a group
/// and all ranks. Steps whose std is 0 (with `ode` or eta 0: all; with cps: the last) are never
/// chosen. Throws Error(usage) if fewer than `count` steps can be chosen, or none.
std::vector<int> choose_steps(const StepChoice& choice, Sampler sampler, double eta,
                              std::span<const float> sigmas, std::uint64_t seed,
                              std::uint64_t iteration, std::uint64_t task);

}  // namespace atelier::flow
