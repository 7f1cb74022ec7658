#include "eval/score_agreement.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>

#include "core/error.hpp"
#include "eval/rank_correlation.hpp"

namespace atelier::eval {
namespace {

using Values = std::vector<ScoredLabel>;
using Function = std::function<std::optional<double>(const Values&)>;

std::optional<Statistic> bootstrap(const BootstrapConfig& config,
                                   std::span<const ScoredLabel> values, const Function& f) {
    ATELIER_CHECK_INPUT(!values.empty(), "agreement of no scores");
    for (const ScoredLabel& v : values)
        ATELIER_CHECK_KIND(ErrorKind::numeric, std::isfinite(v.score) && std::isfinite(v.label),
                           "a score of {} beside a label of {}", v.score, v.label);
    std::map<std::uint64_t, std::size_t> numbers;
    std::vector<std::size_t> cluster;
    for (const ScoredLabel& v : values)
        cluster.push_back(numbers.try_emplace(v.cluster, numbers.size()).first->second);
    const auto value = f(Values(values.begin(), values.end()));
    if (!value) return {};
    std::vector<double> drawn;
    std::vector<int> multiplicity(numbers.size());
    for (int i = 0; numbers.size() > 1 && i < config.resamples; ++i) {
        draw_multiplicities(config, i, multiplicity);
        Values resample;
        for (std::size_t k = 0; k < values.size(); ++k)
            resample.insert(resample.end(), static_cast<std::size_t>(multiplicity[cluster[k]]),
                            values[k]);
        if (const auto v = f(resample)) drawn.push_back(*v);
    }
    std::sort(drawn.begin(), drawn.end());
    const double tail = (1 - config.level) / 2;
    Statistic s{*value, *value, *value, static_cast<std::int64_t>(values.size())};
    if (drawn.empty()) return s;
    s.low = percentile(drawn, tail);
    s.high = percentile(drawn, 1 - tail);
    return s;
}

std::optional<double> ordered_share(Values values) {
    // By label; of each value, how many of lower labels have lower scores, and how many the same:
    // counts by rank of the score in a Fenwick tree.
    std::vector<double> scores;
    for (const ScoredLabel& v : values) scores.push_back(v.score);
    std::sort(scores.begin(), scores.end());
    scores.erase(std::unique(scores.begin(), scores.end()), scores.end());
    std::vector<std::int64_t> tree(scores.size() + 1), same(scores.size());
    const auto rank = [&](double score) {
        return static_cast<std::size_t>(std::lower_bound(scores.begin(), scores.end(), score) -
                                        scores.begin());
    };
    std::sort(values.begin(), values.end(),
              [](const ScoredLabel& a, const ScoredLabel& b) { return a.label < b.label; });
    double right = 0, pairs = 0;
    for (std::size_t begin = 0; begin < values.size();) {
        std::size_t end = begin;
        for (; end < values.size() && values[end].label == values[begin].label; ++end) {
            const std::size_t r = rank(values[end].score);
            std::int64_t lower = 0;
            for (std::size_t i = r; i > 0; i -= i & (~i + 1)) lower += tree[i];
            right += static_cast<double>(lower) + 0.5 * static_cast<double>(same[r]);
            pairs += static_cast<double>(begin);
        }
        for (; begin < end; ++begin) {
            const std::size_t r = rank(values[begin].score);
            ++same[r];
            for (std::size_t i = r + 1; i < tree.size(); i += i & (~i + 1)) ++tree[i];
        }
    }
    if (pairs == 0) return {};
    return right / pairs;
}

}  // namespace

Statistic mean_absolute_error(const BootstrapConfig& config, std::span<const ScoredLabel> values) {
    return *bootstrap(config, values, [](const Values& v) {
        double sum = 0;
        for (const ScoredLabel& each : v) sum += std::abs(each.score - each.label);
        return v.empty() ? std::nullopt : std::optional(sum / static_cast<double>(v.size()));
    });
}

std::optional<Statistic> rank_agreement(const BootstrapConfig& config,
                                        std::span<const ScoredLabel> values) {
    return bootstrap(config, values, [](const Values& v) {
        std::vector<double> scores, labels;
        for (const ScoredLabel& each : v) {
            scores.push_back(each.score);
            labels.push_back(each.label);
        }
        return spearman(scores, labels);
    });
}

std::optional<Statistic> pairwise_accuracy(const BootstrapConfig& config,
                                           std::span<const ScoredLabel> values) {
    return bootstrap(config, values, ordered_share);
}

std::vector<CalibrationLevel> calibration(const BootstrapConfig& config, std::span<const ScoredLabel> values) {
    std::map<int, Values> levels;
    for (const ScoredLabel& v : values) levels[static_cast<int>(std::lround(v.score))].push_back(v);
    std::vector<CalibrationLevel> found;
    for (const auto& [level, of_level] : levels) {
        const auto mean = [](const Values& of, double ScoredLabel::* what) {
            double sum = 0;
            for (const ScoredLabel& v : of) sum += v.*what;
            return of.empty() ? std::nullopt : std::optional(sum / static_cast<double>(of.size()));
        };
        found.push_back({level, static_cast<std::int64_t>(of_level.size()), *mean(of_level, &ScoredLabel::score),
                         *bootstrap(config, of_level, [&](const Values& v) { return mean(v, &ScoredLabel::label); })});
    }
    return found;
}

std::optional<double> krippendorff_alpha(std::span<const std::vector<double>> units) {
    // Sum over ordered pairs of (a - b)^2 = 2 (n sum of squares - square of sum).
    const auto differences = [](double n, double sum, double squares) {
        return 2 * (n * squares - sum * sum);
    };
    double observed = 0, n = 0, sum = 0, squares = 0;
    int used = 0;
    double shift = 0;
    for (const auto& unit : units)
        if (unit.size() > 1) shift = unit[0];  // squares of small numbers
    for (const auto& unit : units) {
        if (unit.size() < 2) continue;
        ++used;
        double s = 0, q = 0;
        for (const double v : unit) {
            s += v - shift;
            q += (v - shift) * (v - shift);
        }
        const auto m = static_cast<double>(unit.size());
        observed += differences(m, s, q) / (m - 1);
        n += m;
        sum += s;
        squares += q;
    }
    const double expected = differences(n, sum, squares) / std::max(1.0, n - 1);
    if (used < 2 || expected <= 0) return {};
    return 1 - observed / expected;
}

std::size_t compared_units(std::span<const std::vector<double>> units) {
    return static_cast<std::size_t>(std::count_if(units.begin(), units.end(), [](const auto& unit) { return unit.size() > 1; }));
}

}  // namespace atelier::eval
