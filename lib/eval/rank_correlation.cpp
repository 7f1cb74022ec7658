#include "eval/rank_correlation.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.hpp"

namespace atelier::eval {

std::vector<double> average_ranks(std::span<const double> values) {
    for (std::size_t i = 0; i < values.size(); ++i)
        ATELIER_CHECK_KIND(ErrorKind::numeric, std::isfinite(values[i]), "value {} is {}", i,
                           values[i]);
    std::vector<std::size_t> order(values.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return values[a] < values[b]; });
    std::vector<double> ranks(values.size());
    for (std::size_t begin = 0; begin < order.size();) {
        std::size_t end = begin + 1;
        while (end < order.size() && values[order[end]] == values[order[begin]]) ++end;
        const double rank =
            0.5 * static_cast<double>(begin + 1 + end);  // mean of begin + 1 ... end
        for (; begin < end; ++begin) ranks[order[begin]] = rank;
    }
    return ranks;
}

std::optional<double> spearman(std::span<const double> a, std::span<const double> b) {
    ATELIER_CHECK(a.size() == b.size(), "{} and {} values of pairs", a.size(), b.size());
    const std::vector<double> x = average_ranks(a), y = average_ranks(b);
    const double mean = 0.5 * static_cast<double>(x.size() + 1);
    double xx = 0, yy = 0, xy = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
        xx += (x[i] - mean) * (x[i] - mean);
        yy += (y[i] - mean) * (y[i] - mean);
        xy += (x[i] - mean) * (y[i] - mean);
    }
    if (xx <= 0.0 || yy <= 0.0) return std::nullopt;
    return xy / std::sqrt(xx * yy);
}

}  // namespace atelier::eval
