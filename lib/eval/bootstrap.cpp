#include "eval/bootstrap.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

#include "core/error.hpp"

namespace atelier::eval {
namespace {

struct ClusterSum {
    double sum = 0;
    std::int64_t count = 0;
};

/// In the order of the cluster numbers, so that the order of the values does not matter.
std::vector<ClusterSum> cluster_sums(std::span<const double> values,
                                     std::span<const std::uint64_t> cluster) {
    std::map<std::uint64_t, ClusterSum> sums;
    for (std::size_t i = 0; i < values.size(); ++i) {
        ATELIER_CHECK_KIND(ErrorKind::numeric, std::isfinite(values[i]), "value {} is {}", i,
                           values[i]);
        ClusterSum& entry = sums[cluster[i]];
        entry.sum += values[i];
        ++entry.count;
    }
    std::vector<ClusterSum> result;
    for (const auto& [key, entry] : sums) result.push_back(entry);
    return result;
}

/// Multiplicities of all resamples, [resamples, clusters], as draw_multiplicities draws them. A report has many intervals over a few numbers of prompts, and
/// drawing costs a hundred times what the sums do: the last few tables are kept.
const std::vector<std::uint16_t>& all_multiplicities(const BootstrapConfig& config, std::size_t clusters) {
    using Key = std::tuple<std::uint64_t, std::uint64_t, int, std::size_t>;
    thread_local std::map<Key, std::vector<std::uint16_t>> kept;
    const Key key{config.seed, config.stream, config.resamples, clusters};
    if (const auto found = kept.find(key); found != kept.end()) return found->second;
    constexpr std::size_t most_tables = 8;
    if (kept.size() == most_tables) kept.clear();
    std::vector<std::uint16_t>& table = kept[key];
    table.resize(static_cast<std::size_t>(config.resamples) * clusters);
    std::vector<int> multiplicity(clusters);
    for (int resample = 0; resample < config.resamples; ++resample) {
        draw_multiplicities(config, resample, multiplicity);
        std::copy(multiplicity.begin(), multiplicity.end(), table.begin() + static_cast<std::ptrdiff_t>(resample) * static_cast<std::ptrdiff_t>(clusters));
    }
    return table;
}

}  // namespace

double percentile(std::span<const double> sorted, double share) {
    ATELIER_CHECK(!sorted.empty() && share >= 0.0 && share <= 1.0, "share {} of {} numbers", share,
                  sorted.size());
    const double at = share * static_cast<double>(sorted.size() - 1);
    const auto below = static_cast<std::size_t>(at);
    const std::size_t above = std::min(below + 1, sorted.size() - 1);
    return sorted[below] + (at - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

void draw_multiplicities(const BootstrapConfig& config, int index, std::span<int> multiplicity) {
    std::fill(multiplicity.begin(), multiplicity.end(), 0);
    Random random(random_key(config.seed, RandomUse::bootstrap, config.stream,
                             static_cast<std::uint64_t>(index)));
    for (std::size_t i = 0; i < multiplicity.size(); ++i)
        ++multiplicity[random.below(multiplicity.size())];
}

Interval bootstrap_mean(const BootstrapConfig& config, std::span<const double> values,
                        std::span<const std::uint64_t> cluster) {
    ATELIER_CHECK(values.size() == cluster.size(), "{} values, {} cluster numbers", values.size(),
                  cluster.size());
    ATELIER_CHECK_INPUT(!values.empty(), "an interval needs at least one value");
    ATELIER_CHECK_USAGE(config.resamples >= 1 && config.level > 0.0 && config.level < 1.0,
                        "resamples must be at least 1 and the level in (0, 1), found {} and {}",
                        config.resamples, config.level);
    const std::vector<ClusterSum> sums = cluster_sums(values, cluster);
    Interval result;
    result.n = static_cast<std::int64_t>(values.size());
    result.clusters = static_cast<std::int64_t>(sums.size());
    double total = 0;
    for (const ClusterSum& entry : sums) total += entry.sum;
    result.mean = result.low = result.high = total / static_cast<double>(result.n);
    if (sums.size() < 2) return result;
    const std::uint16_t* multiplicity = all_multiplicities(config, sums.size()).data();
    std::vector<double> means(static_cast<std::size_t>(config.resamples));
    for (double& mean : means) {
        double sum = 0, count = 0;
        for (std::size_t i = 0; i < sums.size(); ++i) {
            sum += multiplicity[i] * sums[i].sum;
            count += multiplicity[i] * static_cast<double>(sums[i].count);
        }
        mean = sum / count;
        multiplicity += sums.size();
    }
    std::sort(means.begin(), means.end());
    result.low = percentile(means, 0.5 * (1.0 - config.level));
    result.high = percentile(means, 0.5 * (1.0 + config.level));
    return result;
}

Interval bootstrap_difference(const BootstrapConfig& config, std::span<const double> before,
                              std::span<const double> after,
                              std::span<const std::uint64_t> cluster) {
    ATELIER_CHECK(before.size() == after.size(), "{} and {} values of pairs", before.size(),
                  after.size());
    std::vector<double> differences(before.size());
    for (std::size_t i = 0; i < before.size(); ++i) differences[i] = after[i] - before[i];
    return bootstrap_mean(config, differences, cluster);
}

}  // namespace atelier::eval
