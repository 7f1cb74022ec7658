#pragma once

#include <limits>
#include <span>
#include <string>
#include <vector>

namespace atelier::io {

struct PlotPoint {
    static constexpr double none = std::numeric_limits<double>::quiet_NaN();
    double x = 0, y = 0;
    double low = none, high = none;  ///< an interval around y, drawn as a band
};

struct PlotLine {
    std::string name;
    std::vector<PlotPoint> points;  ///< by x, rising; those whose y is not finite are left out, and interrupt the line
};

/// Lines over one axis, which holds the points (and bands) that there are; with two lines or more their names below.
struct Plot {
    std::string title, x_label;
    std::vector<PlotLine> lines;
};

/// One value with its interval, a row.
struct IntervalRow {
    std::string name;
    double mean = 0, low = 0, high = 0;
    std::size_t colour = 0;  ///< of the palette: one thing has one colour in all plots
};
struct IntervalPlot {
    std::string title;
    std::vector<IntervalRow> rows;
    int digits = 2;               ///< after the point
    bool are_differences = false;  ///< from 0, which is on the axis; written with their signs
};

/// What was busy when.
struct SpanBar {
    std::string row;      ///< bars of one row stand beside each other
    std::string name;     ///< shown when it is pointed at
    double begin = 0, end = 0;  ///< seconds
};
/// Rows in the order of their first bars; time to the right, from the first begin.
struct SpanPlot {
    std::string title;
    std::vector<SpanBar> bars;
};

/// A plot as an SVG element, as large as it is and complete: in a page or as a file.
std::string svg_of(const Plot& plot);
std::string svg_of(std::span<const Plot> beside_each_other);
std::string svg_of(const IntervalPlot& plot);
std::string svg_of(const SpanPlot& plot);

/// About `wanted` round numbers (1, 2 or 5 times a power of ten apart) that cover [low, high].
std::vector<double> axis_ticks(double low, double high, int wanted);

}  // namespace atelier::io
