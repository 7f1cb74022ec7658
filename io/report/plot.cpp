#include "io/report/plot.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <span>

#include "io/report/html.hpp"

namespace atelier::io {
namespace {

// Pixels.
constexpr double plot_width = 310, plot_height = 190, left_margin = 56, right_margin = 14, top_margin = 30, axis_height = 36, row_height = 20;
constexpr double character_width = 6.6;  // of 11 pixels' sans-serif, on average

/// Okabe and Ito's colours, which people with colour blindness tell apart.
constexpr std::array colours{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5a5a5a"};
const char* colour_of(std::size_t i) { return colours[i % colours.size()]; }

/// From numbers to pixels.
struct Scale {
    double low = 0, high = 1, from = 0, to = 1;
    double operator()(double value) const { return from + (to - from) * (value - low) / (high - low); }
};

std::string number(double value) {
    if (value == 0) return "0";
    return std::abs(value) < 1e-3 || std::abs(value) >= 1e5 ? fmt::format("{:.3g}", value) : fmt::format("{:.6g}", value);
}

/// What stands in an SVG element of its size.
struct Drawing {
    double width = 0, height = 0;
    std::string body;
};

std::string svg_of(const Drawing& drawing) {
    return fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" viewBox=\"0 0 {0:.0f} {1:.0f}\" font-family=\"sans-serif\" "
        "font-size=\"11\" fill=\"#222\">\n{2}</svg>\n",
        drawing.width, drawing.height, drawing.body);
}

std::string headline(const std::string& title) {
    return fmt::format("<text x=\"{}\" y=\"18\" font-size=\"13\" font-weight=\"bold\">{}</text>\n", left_margin, escape_html(title));
}

std::string text_at(double x, double y, const char* anchor, const std::string& text) {
    return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>\n", x, y, anchor, escape_html(text));
}

std::string line_between(double x1, double y1, double x2, double y2, const char* stroke) {
    return fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\"/>\n", x1, y1, x2, y2, stroke);
}

/// Room above and below what is shown, so that a constant has an axis too.
std::pair<double, double> widened(double low, double high) {
    const double room = high > low ? 0.05 * (high - low) : low != 0 ? 0.1 * std::abs(low) : 1;
    return {low - room, high + room};
}

std::string time_text(double seconds, double step) {
    if (step >= 3600) return fmt::format("{:g} h", seconds / 3600);
    if (step >= 60) return fmt::format("{:g} min", seconds / 60);
    return fmt::format("{:g} s", seconds);
}

/// Ticks of time: round in the unit in which they are written.
std::vector<double> time_ticks(double end) {
    for (const double step : {1., 2., 5., 10., 30., 60., 120., 300., 600., 1800., 3600., 7200., 14400., 43200., 86400., 172800., 604800., 2592000.})
        if (end / step <= 8 || step == 2592000.) {
            std::vector<double> ticks;
            for (int i = 0; i * step <= end; ++i) ticks.push_back(i * step);
            return ticks;
        }
    return {};
}

/// Pieces of a line between points that are no numbers.
std::vector<std::span<const PlotPoint>> pieces_of(const std::vector<PlotPoint>& points) {
    std::vector<std::span<const PlotPoint>> pieces;
    for (std::size_t begin = 0; begin < points.size();) {
        std::size_t end = begin;
        while (end < points.size() && std::isfinite(points[end].y)) ++end;
        if (end > begin) pieces.push_back(std::span(points).subspan(begin, end - begin));
        begin = std::max(end, begin + 1);
    }
    return pieces;
}

bool has_band(const PlotPoint& p) { return std::isfinite(p.low) && std::isfinite(p.high); }

std::string draw_line(const PlotLine& line, const char* colour, const Scale& x, const Scale& y) {
    std::string svg;
    // A dot for each point is legible up to some dozens.
    const bool has_dots = line.points.size() <= 60;
    for (const auto piece : pieces_of(line.points)) {
        if (std::ranges::all_of(piece, has_band) && piece.size() > 1) {
            std::string outline;
            for (const PlotPoint& p : piece) outline += fmt::format("{:.1f},{:.1f} ", x(p.x), y(p.high));
            for (auto p = piece.rbegin(); p != piece.rend(); ++p) outline += fmt::format("{:.1f},{:.1f} ", x(p->x), y(p->low));
            svg += fmt::format("<polygon points=\"{}\" fill=\"{}\" fill-opacity=\"0.13\"/>\n", outline, colour);
        }
        std::string path;
        for (const PlotPoint& p : piece) path += fmt::format("{:.1f},{:.1f} ", x(p.x), y(p.y));
        svg += fmt::format("<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.6\"/>\n", path, colour);
        if (!has_dots && piece.size() > 1) continue;
        for (const PlotPoint& p : piece) {
            const std::string interval = has_band(p) ? fmt::format(" [{}, {}]", number(p.low), number(p.high)) : "";
            svg += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"2.4\" fill=\"{}\"><title>{} at {}: {}{}</title></circle>\n", x(p.x), y(p.y), colour,
                               escape_html(line.name), number(p.x), number(p.y), interval);
        }
    }
    return svg;
}

Drawing drawing_of(const Plot& plot) {
    double x_low = INFINITY, x_high = -INFINITY, y_low = INFINITY, y_high = -INFINITY;
    for (const PlotLine& line : plot.lines)
        for (const PlotPoint& p : line.points) {
            if (!std::isfinite(p.y)) continue;
            x_low = std::min(x_low, p.x), x_high = std::max(x_high, p.x);
            y_low = std::min({y_low, p.y, has_band(p) ? p.low : p.y});
            y_high = std::max({y_high, p.y, has_band(p) ? p.high : p.y});
        }
    // Names stand below the axis, as many in a row as there is room for.
    std::string names;
    double name_x = left_margin, name_y = top_margin + plot_height + axis_height + (plot.lines.size() > 1 ? 12 : 0);
    for (std::size_t i = 0; i < plot.lines.size() && plot.lines.size() > 1; ++i) {
        const double wide = 30 + character_width * static_cast<double>(plot.lines[i].name.size());
        if (name_x > left_margin && name_x + wide > left_margin + plot_width) name_x = left_margin, name_y += 15;
        names += fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"14\" height=\"4\" fill=\"{}\"/>\n", name_x, name_y - 6, colour_of(i)) +
                 text_at(name_x + 18, name_y, "start", plot.lines[i].name);
        name_x += wide;
    }
    const double bottom = top_margin + plot_height;
    std::string svg = headline(plot.title);
    const auto complete = [&](const std::string& body) { return Drawing{left_margin + plot_width + right_margin, name_y + 10, body + names}; };
    if (!(y_low <= y_high)) return complete(svg + text_at(left_margin, bottom - plot_height / 2, "start", "nothing to show yet"));
    const auto [low, high] = widened(y_low, y_high);
    const Scale y{low, high, bottom, top_margin}, x{x_low, x_high > x_low ? x_high : x_low + 1, left_margin + 6, left_margin + plot_width - 6};
    for (const double tick : axis_ticks(low, high, 5))
        svg += line_between(left_margin, y(tick), left_margin + plot_width, y(tick), "#ddd") + text_at(left_margin - 6, y(tick) + 4, "end", number(tick));
    // Steps are counted.
    for (const double tick : axis_ticks(x_low, x_high, std::min(8, std::max(1, static_cast<int>(x_high - x_low)))))
        svg += line_between(x(tick), bottom, x(tick), bottom + 4, "#888") + text_at(x(tick), bottom + 16, "middle", number(tick));
    svg += line_between(left_margin, bottom, left_margin + plot_width, bottom, "#888");
    svg += text_at(left_margin + plot_width / 2, bottom + 31, "middle", plot.x_label);
    for (std::size_t i = 0; i < plot.lines.size(); ++i) svg += draw_line(plot.lines[i], colour_of(i), x, y);
    return complete(svg);
}

}  // namespace

std::vector<double> axis_ticks(double low, double high, int wanted) {
    if (!(high > low)) return {low};
    const double rough = (high - low) / std::max(1, wanted), power = std::pow(10., std::floor(std::log10(rough)));
    double step = 10 * power;
    for (const double factor : {1., 2., 5.})
        if (rough <= factor * power * (1 + 1e-9)) {
            step = factor * power;
            break;
        }
    std::vector<double> ticks;
    const auto first = std::ceil(low / step - 1e-9), last = std::floor(high / step + 1e-9);
    for (std::int64_t i = 0; first + static_cast<double>(i) <= last; ++i) ticks.push_back((first + static_cast<double>(i)) * step);
    return ticks;
}

std::string svg_of(const Plot& plot) { return svg_of(std::span(&plot, 1)); }

std::string svg_of(std::span<const Plot> beside_each_other) {
    Drawing all;
    for (const Plot& plot : beside_each_other) {
        const Drawing one = drawing_of(plot);
        all.body += fmt::format("<g transform=\"translate({:.0f} 0)\">\n{}</g>\n", all.width, one.body);
        all.width += one.width;
        all.height = std::max(all.height, one.height);
    }
    return svg_of(all);
}

std::string svg_of(const IntervalPlot& plot) {
    double low = INFINITY, high = -INFINITY;
    std::size_t longest = 0;
    for (const IntervalRow& row : plot.rows) {
        low = std::min(low, row.low), high = std::max(high, row.high);
        longest = std::max(longest, row.name.size());
    }
    const double names = std::max(left_margin, 12 + character_width * static_cast<double>(longest)), values = 140, span = 280;
    const double bottom = top_margin + row_height * static_cast<double>(plot.rows.size());
    std::string svg = headline(plot.title);
    if (plot.rows.empty()) return svg_of(Drawing{names + span + values, bottom + 26, svg});
    if (plot.are_differences) low = std::min(low, 0.), high = std::max(high, 0.);
    std::tie(low, high) = widened(low, high);
    const Scale x{low, high, names, names + span};
    for (const double tick : axis_ticks(low, high, 5))
        svg += line_between(x(tick), top_margin, x(tick), bottom, "#ddd") + text_at(x(tick), bottom + 15, "middle", number(tick));
    if (plot.are_differences) svg += line_between(x(0), top_margin, x(0), bottom, "#888");
    const auto value = [&](double v) { return plot.are_differences ? fmt::format("{:+.{}f}", v, plot.digits) : fmt::format("{:.{}f}", v, plot.digits); };
    for (std::size_t i = 0; i < plot.rows.size(); ++i) {
        const IntervalRow& row = plot.rows[i];
        const double y = top_margin + row_height * (static_cast<double>(i) + 0.5);
        svg += text_at(names - 8, y + 4, "end", row.name);
        svg += fmt::format("<line x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\" stroke-width=\"2\"/>\n", x(row.low), x(row.high), y, y,
                           colour_of(row.colour));
        svg += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\" fill=\"{}\"/>\n", x(row.mean), y, colour_of(row.colour));
        svg += text_at(names + span + 10, y + 4, "start", fmt::format("{} [{}, {}]", value(row.mean), value(row.low), value(row.high)));
    }
    return svg_of(Drawing{names + span + values, bottom + 26, svg});
}

std::string svg_of(const SpanPlot& plot) {
    std::vector<std::string> rows;
    double begin = INFINITY, end = -INFINITY;
    std::size_t longest = 0;
    for (const SpanBar& bar : plot.bars) {
        if (std::ranges::find(rows, bar.row) == rows.end()) rows.push_back(bar.row);
        longest = std::max(longest, bar.row.size());
        begin = std::min(begin, bar.begin), end = std::max(end, bar.end);
    }
    const double names = std::max(left_margin, 12 + character_width * static_cast<double>(longest)), span = 700;
    const double bottom = top_margin + row_height * static_cast<double>(rows.size());
    std::string svg = headline(plot.title);
    if (plot.bars.empty()) return svg_of(Drawing{names + span + 40, bottom + 26, svg});
    const double length = std::max(1., end - begin);
    const Scale x{0, length, names, names + span};
    const auto ticks = time_ticks(length);
    for (const double tick : ticks)
        svg += line_between(x(tick), top_margin, x(tick), bottom, "#ddd") +
               text_at(x(tick), bottom + 15, "middle", time_text(tick, ticks.size() > 1 ? ticks[1] : 1));
    for (std::size_t i = 0; i < rows.size(); ++i) svg += text_at(names - 8, top_margin + row_height * (static_cast<double>(i) + 0.7), "end", rows[i]);
    for (const SpanBar& bar : plot.bars) {
        const auto row = static_cast<std::size_t>(std::ranges::find(rows, bar.row) - rows.begin());
        svg += fmt::format(
            "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"{}\" stroke=\"white\" stroke-width=\"0.5\"><title>{}, {:.0f} s</title></rect>\n",
            x(bar.begin - begin), top_margin + row_height * static_cast<double>(row) + 3, std::max(1.5, x(bar.end - begin) - x(bar.begin - begin)),
            row_height - 6, colour_of(row), escape_html(bar.name), bar.end - bar.begin);
    }
    return svg_of(Drawing{names + span + 40, bottom + 26, svg});
}

}  // namespace atelier::io
