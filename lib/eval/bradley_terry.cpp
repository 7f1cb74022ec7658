#include "eval/bradley_terry.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>

#include "core/error.hpp"

namespace atelier::eval {
namespace {

/// Every model reachable from model 0 along wins (or along losses).
bool reaches_all(std::size_t models, std::span<const double> wins, bool along_wins) {
    std::vector<std::uint8_t> seen(models, 0);
    std::vector<std::size_t> open{0};
    seen[0] = 1;
    while (!open.empty()) {
        const std::size_t i = open.back();
        open.pop_back();
        for (std::size_t j = 0; j < models; ++j) {
            const double edge = along_wins ? wins[i * models + j] : wins[j * models + i];
            if (edge > 0.0 && !seen[j]) {
                seen[j] = 1;
                open.push_back(j);
            }
        }
    }
    return std::all_of(seen.begin(), seen.end(), [](std::uint8_t s) { return s != 0; });
}

std::vector<double> iterate(std::size_t models, std::span<const double> wins) {
    std::vector<double> strength(models, 1.0), next(models);
    constexpr int max_iterations =
        100000;  // MM is linear and slow where one model nearly always wins
    for (int iteration = 0; iteration < max_iterations; ++iteration) {
        double log_sum = 0;
        for (std::size_t i = 0; i < models; ++i) {
            double won = 0, pressure = 0;
            for (std::size_t j = 0; j < models; ++j) {
                if (i == j) continue;
                won += wins[i * models + j];
                pressure +=
                    (wins[i * models + j] + wins[j * models + i]) / (strength[i] + strength[j]);
            }
            next[i] = won / pressure;
            log_sum += std::log(next[i]);
        }
        const double scale = std::exp(-log_sum / static_cast<double>(models));
        double change = 0;
        for (std::size_t i = 0; i < models; ++i) {
            next[i] *= scale;
            change = std::max(change, std::abs(std::log(next[i] / strength[i])));
        }
        strength.swap(next);
        if (change < 1e-12) break;
    }
    return strength;
}

void add_outcome(std::size_t models, const Outcome& outcome, std::span<double> wins) {
    const auto i = static_cast<std::size_t>(outcome.first),
               j = static_cast<std::size_t>(outcome.second);
    wins[i * models + j] += outcome.result;
    wins[j * models + i] += 1.0 - outcome.result;
}

double elo(double log_strength) { return 1000.0 + 400.0 / std::numbers::ln10 * log_strength; }

}  // namespace

Strengths fit_bradley_terry(int models, std::span<const double> wins) {
    const auto count = static_cast<std::size_t>(models);
    ATELIER_CHECK(models >= 1 && wins.size() == count * count, "{} models, {} win counts", models,
                  wins.size());
    for (const double value : wins)
        ATELIER_CHECK_INPUT(value >= 0.0 && std::isfinite(value), "a number of wins is {}", value);
    Strengths result;
    std::vector<double> used(wins.begin(), wins.end());
    if (count > 1 && !(reaches_all(count, wins, true) && reaches_all(count, wins, false))) {
        result.regularised = true;
        for (std::size_t i = 0; i < count; ++i)
            for (std::size_t j = 0; j < count; ++j)
                if (i != j) used[i * count + j] += 0.5;
    }
    result.log_strength.assign(count, 0.0);
    if (count == 1) return result;
    const std::vector<double> strength = iterate(count, used);
    for (std::size_t i = 0; i < count; ++i) result.log_strength[i] = std::log(strength[i]);
    return result;
}

EloTable elo_table(const BootstrapConfig& config, int models, std::span<const Outcome> outcomes) {
    ATELIER_CHECK_INPUT(!outcomes.empty(), "an Elo table needs at least one comparison");
    const auto count = static_cast<std::size_t>(models);
    std::map<std::uint64_t, std::vector<double>>
        by_cluster;  // wins [models, models] of each prompt
    std::vector<double> wins(count * count, 0.0);
    for (const Outcome& outcome : outcomes) {
        ATELIER_CHECK_INPUT(outcome.first >= 0 && outcome.first < models && outcome.second >= 0 &&
                                outcome.second < models && outcome.first != outcome.second,
                            "a comparison of models {} and {} of {}", outcome.first, outcome.second,
                            models);
        ATELIER_CHECK_INPUT(outcome.result >= 0.0 && outcome.result <= 1.0,
                            "a comparison's result is {}", outcome.result);
        auto& cluster = by_cluster[outcome.cluster];
        cluster.resize(count * count, 0.0);
        add_outcome(count, outcome, cluster);
        add_outcome(count, outcome, wins);
    }
    EloTable table;
    table.outcomes = static_cast<std::int64_t>(outcomes.size());
    const Strengths point = fit_bradley_terry(models, wins);
    table.regularised = point.regularised;
    for (const double log_strength : point.log_strength)
        table.entries.push_back({elo(log_strength), elo(log_strength), elo(log_strength)});
    if (by_cluster.size() < 2) return table;

    std::vector<int> multiplicity(by_cluster.size());
    std::vector<std::vector<double>> draws(count);
    for (int resample = 0; resample < config.resamples; ++resample) {
        draw_multiplicities(config, resample, multiplicity);
        std::fill(wins.begin(), wins.end(), 0.0);
        std::size_t at = 0;
        for (const auto& [key, cluster] : by_cluster) {
            const double times = multiplicity[at++];
            for (std::size_t i = 0; i < wins.size(); ++i) wins[i] += times * cluster[i];
        }
        const Strengths fit = fit_bradley_terry(models, wins);
        for (std::size_t i = 0; i < count; ++i) draws[i].push_back(elo(fit.log_strength[i]));
    }
    for (std::size_t i = 0; i < count; ++i) {
        std::sort(draws[i].begin(), draws[i].end());
        table.entries[i].low = percentile(draws[i], 0.5 * (1.0 - config.level));
        table.entries[i].high = percentile(draws[i], 0.5 * (1.0 + config.level));
    }
    return table;
}

}  // namespace atelier::eval
