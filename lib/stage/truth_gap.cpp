#include "stage/truth_gap.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/progress.hpp"
#include "io/metrics.hpp"

namespace atelier::stage {
namespace {

using Json = nlohmann::json;

/// One iteration of a policy: means over dimensions that both scorers have, and the gap that watch_gap() compares, which is of the
/// samples that both scored.
struct Point {
    int iteration = 0;
    double judge = 0, truth = 0, gap = 0;
};

// Of a panel, in pixels; scores run from 1 to 5.
constexpr double panel_width = 320, panel_height = 200, margin = 44;

std::string line_of(const std::vector<Point>& points, double Point::*value, double last,
                    const char* colour, double left) {
    std::string path, dots;
    for (const Point& p : points) {
        const double x = left + margin + panel_width * (last > 1 ? (p.iteration - 1) / (last - 1) : 0.5),
                     y = margin + panel_height * (5 - p.*value) / 4;
        path += fmt::format("{}{:.1f},{:.1f}", path.empty() ? "" : " ", x, y);
        dots += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"2.5\" fill=\"{}\"/>", x, y, colour);
    }
    return fmt::format("<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"2\" points=\"{}\"/>{}\n", colour, path, dots);
}

std::string panel_of(const std::string& policy, const std::vector<Point>& points, double left) {
    const double last = points.back().iteration;
    std::string svg;
    for (int level = 1; level <= 5; ++level) {
        const double y = margin + panel_height * (5 - level) / 4.0;
        svg += fmt::format("<line x1=\"{}\" x2=\"{}\" y1=\"{}\" y2=\"{}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{}\">{}</text>\n",
                           left + margin, left + margin + panel_width, y, y, left + margin - 16, y + 4, level);
    }
    svg += line_of(points, &Point::judge, last, "#b5432a", left);
    svg += line_of(points, &Point::truth, last, "#2a6db5", left);
    svg += fmt::format("<text x=\"{}\" y=\"24\" font-weight=\"bold\">{}</text>\n", left + margin, policy);
    svg += fmt::format("<text x=\"{}\" y=\"{}\">iterations 1 to {}; gap {:+.2f}, at first {:+.2f}</text>\n", left + margin,
                       margin + panel_height + 22, points.back().iteration, points.back().gap, points.front().gap);
    return svg;
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
    const double width = panel_width + 2 * margin;
    std::string svg = fmt::format("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" font-family=\"sans-serif\" font-size=\"12\">\n",
                                  width * static_cast<double>(policies.size()), panel_height + 2 * margin + 20);
    svg += fmt::format("<text x=\"{}\" y=\"{}\" fill=\"#b5432a\">judge</text><text x=\"{}\" y=\"{}\" fill=\"#2a6db5\">truth</text>\n", margin,
                       panel_height + 2 * margin, margin + 50, panel_height + 2 * margin);
    double left = 0;
    for (auto& [policy, points] : policies) {
        std::sort(points.begin(), points.end(), [](const Point& a, const Point& b) { return a.iteration < b.iteration; });
        svg += panel_of(policy, points, left);
        left += width;
    }
    return svg + "</svg>\n";
}

}  // namespace atelier::stage
