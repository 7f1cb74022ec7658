#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "eval/bootstrap.hpp"

namespace atelier::eval {

/// One comparison of two models' samples for one prompt and seed.
struct Outcome {
    int first = 0, second = 0;  ///< models
    double result = 0.5;        ///< 1: first wins, 0: second wins, 0.5: tie (half a win each)
    std::uint64_t cluster = 0;  ///< prompt
};

struct Strengths {
    std::vector<double>
        log_strength;          ///< [models], mean 0: P(i beats j) = 1 / (1 + exp(s_j - s_i))
    bool regularised = false;  ///< some model never lost to another: half a win each way was added
};

/// Maximum likelihood of the Bradley-Terry model, by Hunter's MM iteration (Ann. Stat. 32, 2004).
/// `wins` [models, models]: how often row beat column. The maximum is finite if and only if the
/// graph of wins is strongly connected (Ford 1957); otherwise half a win each way is added to every
/// pair. Throws Error(input) for negative or non-finite entries.
Strengths fit_bradley_terry(int models, std::span<const double> wins);

struct EloEntry {
    double elo = 0, low = 0, high = 0;  ///< 1000 on average over the models; 400 = odds of 10
};

struct EloTable {
    std::vector<EloEntry> entries;  ///< [models]
    bool regularised = false;       ///< of the point estimate
    std::int64_t outcomes = 0;
};

/// Elo with percentile intervals over resampled prompts. Throws Error(input) for a model out of
/// range or a result outside [0, 1], and without outcomes.
EloTable elo_table(const BootstrapConfig& config, int models, std::span<const Outcome> outcomes);

}  // namespace atelier::eval
