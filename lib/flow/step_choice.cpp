#include "flow/step_choice.hpp"

#include <algorithm>
#include <cmath>

#include "core/error.hpp"
#include "core/philox.hpp"

namespace atelier::flow {
namespace {

/// Index drawn with probability weights[i] / sum.
std::size_t draw(std::span<const double> weights, Random& random) {
    double total = 0;
    for (const double weight : weights) total += weight;
    double left = random.uniform() * total;
    for (std::size_t i = 0; i + 1 < weights.size(); ++i) {
        left -= weights[i];
        if (left < 0.0) return i;
    }
    return weights.size() - 1;
}

std::vector<int> window(const StepChoice& choice, const std::vector<int>& possible,
                        std::span<const float> sigmas, Random& random) {
    std::vector<int> begins;  // of windows all of whose steps are possible
    std::vector<double> weights;
    for (const int begin : possible) {
        const auto at = std::lower_bound(possible.begin(), possible.end(), begin);
        if (possible.end() - at < choice.count || at[choice.count - 1] != begin + choice.count - 1)
            continue;
        begins.push_back(begin);
        weights.push_back(
            std::pow(static_cast<double>(sigmas[static_cast<std::size_t>(begin)]), choice.gamma));
    }
    ATELIER_CHECK_USAGE(!begins.empty(),
                        "no window of {} neighbouring steps among those with noise", choice.count);
    int begin = choice.window_begin;
    if (begin < 0) {
        begin = begins[draw(weights, random)];
    } else {
        ATELIER_CHECK_USAGE(std::find(begins.begin(), begins.end(), begin) != begins.end(),
                            "a window of {} steps from step {} has a step without noise or beyond "
                            "the schedule's {}",
                            choice.count, begin, static_cast<long>(sigmas.size()) - 1);
    }
    std::vector<int> chosen;
    for (int i = 0; i < choice.count; ++i) chosen.push_back(begin + i);
    return chosen;
}

std::vector<int> subset(const StepChoice& choice, std::vector<int> left,
                        std::span<const float> sigmas, Random& random) {
    std::vector<double> weights;
    for (const int index : left)
        weights.push_back(
            std::pow(static_cast<double>(sigmas[static_cast<std::size_t>(index)]), choice.gamma));
    std::vector<int> chosen;
    while (static_cast<int>(chosen.size()) < choice.count) {
        const auto at = static_cast<std::ptrdiff_t>(draw(weights, random));
        chosen.push_back(left[static_cast<std::size_t>(at)]);
        left.erase(left.begin() + at);
        weights.erase(weights.begin() + at);
    }
    std::sort(chosen.begin(), chosen.end());
    return chosen;
}

}  // namespace

StepPolicy parse_step_policy(const std::string& word) {
    for (const StepPolicy policy : {StepPolicy::all, StepPolicy::window, StepPolicy::subset})
        if (word == name_of(policy)) return policy;
    ATELIER_FAIL(ErrorKind::usage,
                 "the choice of steps must be all, window or subset, found \"{}\"", word);
}

const char* name_of(StepPolicy policy) {
    switch (policy) {
        case StepPolicy::all:
            return "all";
        case StepPolicy::window:
            return "window";
        case StepPolicy::subset:
            return "subset";
    }
    return "unknown";
}

std::vector<int> choose_steps(const StepChoice& choice, Sampler sampler, double eta,
                              std::span<const float> sigmas, std::uint64_t seed,
                              std::uint64_t iteration, std::uint64_t task) {
    ATELIER_CHECK_USAGE(std::isfinite(choice.gamma), "gamma must be a number, found {}",
                        choice.gamma);
    std::vector<int> possible;
    for (int i = 0; i + 1 < static_cast<int>(sigmas.size()); ++i)
        if (transition(sampler, eta, sigmas, i).has_log_prob()) possible.push_back(i);
    ATELIER_CHECK_USAGE(!possible.empty(),
                        "sampler {} with eta {} has no step with noise: nothing can be trained",
                        name_of(sampler), eta);
    if (choice.policy == StepPolicy::all) return possible;
    ATELIER_CHECK_USAGE(
        choice.count >= 1 && choice.count <= static_cast<int>(possible.size()),
        "steps.count must lie in [1, {}] (steps with noise), found {}",
        possible.size(), choice.count);
    Random random(random_key(seed, RandomUse::step_choice, iteration, task));
    return choice.policy == StepPolicy::window ? window(choice, possible, sigmas, random)
                                               : subset(choice, possible, sigmas, random);
}

}  // namespace atelier::flow
