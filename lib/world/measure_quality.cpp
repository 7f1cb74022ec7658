#include <fmt/format.h>
#include <fmt/ranges.h>

#include "world/pixels.hpp"

namespace atelier::world {
namespace {

/// Largest channel difference to the right and lower neighbours.
double step_at(Picture p, int x, int y) {
    const Colour c = pixel(p, x, y), r = pixel(p, std::min(x + 1, side - 1), y), d = pixel(p, x, std::min(y + 1, side - 1));
    double largest = 0;
    for (std::size_t k = 0; k < 3; ++k) largest = std::max({largest, std::abs(c[k] - r[k]), std::abs(c[k] - d[k])});
    return largest;
}

/// The skin that fits the lower face best, and how much of it is there.
std::pair<Colour, double> best_skin(Picture p) {
    std::pair<Colour, double> best{{}, -1};
    for (std::string_view name : skins) {
        const Colour c = skin_colour(name);
        const double cover = coverage(p, 46, 82, 76, 92, c);
        if (cover > best.second) best = {c, cover};
    }
    return best;
}

struct Eye {
    bool found = false;
    double x = 0, y = 0;
};

/// Centre of dark pupil pixels that have eye white beside them, in one half of the eye band.
Eye find_eye(Picture p, int x0, int x1) {
    Eye eye;
    double n = 0, white = 0;
    for (int y = 54; y < 70; ++y)
        for (int x = x0; x < x1; ++x) {
            const Colour c = pixel(p, x, y);
            const double sum = c[0] + c[1] + c[2];
            if (sum > 640) ++white;
            bool beside_white = false;
            for (int dx = -4; dx <= 4 && !beside_white; ++dx) {
                const Colour o = pixel(p, std::clamp(x + dx, 0, side - 1), y);
                beside_white = o[0] + o[1] + o[2] > 640;
            }
            if (sum > 200 || !beside_white) continue;
            eye.x += x;
            eye.y += y;
            ++n;
        }
    if (n < 6 || white < 12) return eye;
    eye.found = true;
    eye.x /= n;
    eye.y /= n;
    return eye;
}

}  // namespace

Measurement measure_aesthetics(Picture picture) {
    double residue = 0, edges = 0;
    for (int y = 0; y < side; ++y)
        for (int x = 0; x < side; ++x) {
            const double g = step_at(picture, x, y);
            if (g > 24)
                ++edges;
            else if (g > 5)
                ++residue;
        }
    residue /= pixel_count;
    edges /= pixel_count;
    if (edges < 0.004) return {true, 1, "nothing to see: no edges"};
    const double clean = falling(residue, 0.05, 0.30), calm = falling(edges, 0.20, 0.45);
    std::string reason = "flat areas are flat and edges crisp";
    if (calm < 0.9)
        reason = fmt::format("noise: edges in {:.0f} % of the picture", 100 * edges);
    else if (clean < 0.9)
        reason = fmt::format("smears and residue in {:.0f} % of the picture", 100 * residue);
    return {true, likert(clean * calm), reason};
}

Measurement measure_portrait(Picture picture, const Scene& asked) {
    if (asked.category != "portrait") return {false, 1, "no face was asked for"};
    const auto [skin, cover] = best_skin(picture);
    if (cover < 0.35) return {true, 1, "no face"};
    const Eye left = find_eye(picture, 42, 64), right = find_eye(picture, 64, 86);
    std::vector<std::string> faults;
    double eyes = 0;
    if (left.found && right.found) {
        const double tilt = std::abs(left.y - right.y), shift = std::abs((left.x + right.x) / 2 - 63.5);
        eyes = falling(tilt, 1, 5) * falling(shift, 1.5, 6);
        if (eyes < 0.5) faults.push_back("the eyes are not alike");
    } else {
        eyes = left.found || right.found ? 0.25 : 0;
        faults.push_back(eyes > 0 ? "one eye is missing" : "no eyes");
    }
    double lips = 0;
    for (int y = 76; y < 92; ++y)
        for (int x = 54; x < 74; ++x) lips += distance(pixel(picture, x, y), {175, 60, 70}) < 55;
    const double mouth = std::clamp(lips / 45, 0.0, 1.0);
    if (mouth < 0.5) faults.push_back("no mouth");
    // The two halves of the face are mirror images.
    double asymmetry = 0;
    for (int y = 44; y < 96; ++y)
        for (int x = 40; x < 64; ++x) asymmetry += std::min(100.0, distance(pixel(picture, x, y), pixel(picture, side - 1 - x, y)));
    const double mirror = falling(asymmetry / (52 * 24), 4, 30);
    if (mirror < 0.5) faults.push_back("the face is lopsided");
    const double f = std::clamp((cover - 0.35) / 0.35, 0.0, 1.0) * (0.1 + 0.35 * eyes + 0.25 * mouth + 0.3 * mirror);
    return {true, likert(f), faults.empty() ? "a face with its features in place" : fmt::format("{}", fmt::join(faults, "; "))};
}

}  // namespace atelier::world
