#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "world/draw.hpp"
#include "world/measure.hpp"

// What the measures share: pixels, regions, blobs.
namespace atelier::world {

inline constexpr int pixel_count = side * side;

inline Colour pixel(Picture p, int x, int y) {
    const std::size_t at = pixel_index(x, y) * 4;
    return {double(p[at]), double(p[at + 1]), double(p[at + 2])};
}

/// Euclidean distance of colours, 0 … 441.
inline double distance(const Colour& a, const Colour& b) {
    return std::sqrt((a[0] - b[0]) * (a[0] - b[0]) + (a[1] - b[1]) * (a[1] - b[1]) + (a[2] - b[2]) * (a[2] - b[2]));
}

/// 1 at or below `good`, 0 at or above `bad`, linear between.
inline double falling(double value, double good, double bad) { return std::clamp((bad - value) / (bad - good), 0.0, 1.0); }

inline double likert(double fraction) { return 1 + 4 * std::clamp(fraction, 0.0, 1.0); }

/// Mean over the pixels of a rectangle [x0, x1) x [y0, y1) of 1 where they are close to `colour`, falling to 0.
inline double coverage(Picture p, int x0, int x1, int y0, int y1, const Colour& colour) {
    double sum = 0;
    for (int y = y0; y < y1; ++y)
        for (int x = x0; x < x1; ++x) sum += falling(distance(pixel(p, x, y), colour), 25, 60);
    return sum / ((x1 - x0) * (y1 - y0));
}

struct Blob {
    std::vector<int> pixels;  ///< y * side + x
    double x = 0, y = 0;      ///< centroid, pixel centres
    Colour colour{};          ///< mean
    double area() const { return static_cast<double>(pixels.size()); }
};

/// 4-connected regions of at least `least` pixels where `inside` holds, largest first.
std::vector<Blob> blobs(Picture p, const std::function<bool(int x, int y)>& inside, int least);

}  // namespace atelier::world
