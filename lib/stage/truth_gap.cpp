#include "stage/truth_gap.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/progress.hpp"
#include "io/metrics.hpp"
#include "io/report/plot.hpp"

namespace atelier::stage {
namespace {

using Json = nlohmann::json;

/// One iteration of a policy: means over dimensions that both scorers have, and the gap that watch_gap() compares, which is of the
/// samples that both scored.
struct Point {
    int iteration = 0;
    double judge = 0, truth = 0, gap = 0;
};

io::Plot plot_of(const std::string& policy, const std::vector<Point>& points) {
    io::Plot plot{fmt::format("{}: gap {:+.2f}, at first {:+.2f}", policy, points.back().gap, points.front().gap), "iteration", {{"judge", {}}, {"truth", {}}}};
    for (const Point& p : points) {
        plot.lines[0].points.push_back({static_cast<double>(p.iteration), p.judge});
        plot.lines[1].points.push_back({static_cast<double>(p.iteration), p.truth});
    }
    return plot;
}

}  // namespace

std::pair<Columns, Columns> compare_with_truth(const io::TrajectorySamples& s) {
    Columns truth, gap;
    std::vector<double> sum(s.sample_id.size()), terms(s.sample_id.size());
    for (const auto& [name, column] : s.truth) {
        const auto judged = s.reward.find(name);
        for (std::size_t m = 0; m < column.score.size(); ++m) {
            if (column.present[m] == 0) continue;
            ATELIER_CHECK_KIND(ErrorKind::numeric, std::isfinite(column.score[m]), "the truth's {} of member {} is {}", name, m,
                               column.score[m]);
            truth[name].push_back(column.score[m]);
            if (judged == s.reward.end() || judged->second.present[m] == 0) continue;
            const double above = double(judged->second.score[m]) - column.score[m];
            gap[name].push_back(above);
            sum[m] += above, ++terms[m];
        }
    }
    for (std::size_t m = 0; m < sum.size(); ++m)
        if (terms[m] > 0) gap["all"].push_back(sum[m] / terms[m]);
    return {truth, gap};
}

void watch_gap(const Context& c, Json& metrics) {
    const double gap = metrics.at("gap").at("all").at("mean");
    double first = gap;
    if (c.iteration > 1) {
        const Json facts = io::read_facts(c.run.policy(c.policy, 1));
        if (facts.contains("gap")) first = facts["gap"].at("all").at("mean");
    }
    const double growth = gap - first, warn = c.config.number("reward.gap_warn"), stop = c.config.number("reward.gap_stop");
    metrics["gap_growth"] = growth;
    metrics["gap_warning"] = warn > 0 && growth > warn;
    const bool stops = stop > 0 && growth > stop;
    if (c.world->is_root()) {
        if (metrics["gap_warning"])
            log_line(fmt::format("warning: {} {}: the judge lies {:.3f} above the truth, {:.3f} more than in iteration 1 (reward.gap_warn = {}): "
                                 "the policy may be hacking the reward",
                                 c.policy, c.iteration, gap, growth, warn));
        if (stops) io::put_metrics(c.run.metrics(), metrics);
    }
    if (stops) c.world->barrier();  // the first rank that fails ends the others
    ATELIER_CHECK_KIND(ErrorKind::reward_gap, !stops,
                       "{} {}: the judge lies {:.3f} above the truth, {:.3f} more than in iteration 1, and reward.gap_stop = {}: the policy of "
                       "iteration {} is the last that may be used",
                       c.policy, c.iteration, gap, growth, stop, c.iteration - 1);
}

std::string gap_curve(const std::filesystem::path& path) {
    std::map<std::string, std::vector<Point>> policies;
    for (const Json& record : io::read_metrics(path)) {
        if (!record.contains("gap")) continue;
        Point p{record.at("iteration"), 0, 0, record["gap"].at("all").at("mean")};
        double n = 0;
        for (const auto& [name, value] : record["gap"].items()) {
            if (name == "all") continue;
            p.judge += record.at("reward").at(name).at("mean").get<double>();
            p.truth += record.at("truth").at(name).at("mean").get<double>();
            ++n;
        }
        p.judge /= n;
        p.truth /= n;
        policies[record.at("policy")].push_back(p);
    }
    if (policies.empty()) return {};
    std::vector<io::Plot> plots;
    for (auto& [policy, points] : policies) {
        std::ranges::sort(points, {}, &Point::iteration);
        plots.push_back(plot_of(policy, points));
    }
    return io::svg_of(plots);
}

}  // namespace atelier::stage
