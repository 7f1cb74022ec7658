#include <fmt/format.h>
#include <fmt/ranges.h>

#include <numbers>
#include <numeric>
#include <optional>

#include "world/pixels.hpp"

namespace atelier::world {
namespace {

// A colour counts in full up to this far from the palette's, and not at all beyond the second.
constexpr double colour_good = 25, colour_bad = 95;

double colour_match(const Colour& found, const Colour& asked) { return falling(distance(found, asked), colour_good, colour_bad); }

/// Share of a 3-pixel frame that has the background's colour.
double background_match(Picture p, const Colour& asked) {
    return (coverage(p, 0, side, 0, 3, asked) + coverage(p, 0, side, side - 3, side, asked) + coverage(p, 0, 3, 0, side, asked) +
            coverage(p, side - 3, side, 0, side, asked)) / 4;
}

/// Area of a shape over its radius squared, and how far below its centre the centroid lies over the radius.
struct ShapeGeometry {
    double area, centroid;
};
ShapeGeometry geometry(std::string_view shape) {
    if (shape == "circle") return {std::numbers::pi, 0};
    if (shape == "square") return {1.76 * 1.76, 0};
    if (shape == "triangle") return {1.8, 0.2};
    return {5 * 1.1 * 0.48 * std::sin(std::numbers::pi / 5), 0};
}

/// Intersection over union of a blob and a shape of the same area and centroid.
double overlap(const Blob& blob, std::string_view shape) {
    const ShapeGeometry g = geometry(shape);
    const double r = std::sqrt(blob.area() / g.area), cx = blob.x, cy = blob.y - g.centroid * r;
    const ShapeOutline outline(shape, r);
    double both = 0, ideal = 0;
    for (int at : blob.pixels) {
        const int x = at % side, y = at / side;
        if (outline.covers(x + 0.5 - cx, y + 0.5 - cy)) ++both;
    }
    const int reach = static_cast<int>(1.2 * r) + 1;
    for (int y = std::max(0, int(cy) - reach); y < std::min(side, int(cy) + reach + 1); ++y)
        for (int x = std::max(0, int(cx) - reach); x < std::min(side, int(cx) + reach + 1); ++x)
            if (outline.covers(x + 0.5 - cx, y + 0.5 - cy)) ++ideal;
    return both / (blob.area() + ideal - both);
}

/// How well each of `shapes` fits a blob.
using Fits = std::array<double, std::size(shapes)>;
Fits fits_of(const Blob& blob) {
    Fits fits;
    for (std::size_t i = 0; i < fits.size(); ++i) fits[i] = overlap(blob, shapes[i]);
    return fits;
}

/// 1 for the asked shape drawn well, at most 1/2 where another shape fits better.
double shape_match(const Fits& fits, const std::string& asked) {
    double mine = 0, other = 0;
    for (std::size_t i = 0; i < fits.size(); ++i)
        if (shapes[i] == asked)
            mine = fits[i];
        else
            other = std::max(other, fits[i]);
    return std::clamp((mine - 0.6) / 0.28, 0.0, 1.0) * (mine >= other ? 1.0 : 0.5);
}

Measurement measure_general(Picture p, const Scene& asked) {
    const Colour background = colour_of(asked.background);
    const double frame = background_match(p, background);
    const auto found = blobs(p, [&](int x, int y) { return distance(pixel(p, x, y), background) > 55; }, 30);
    const std::size_t wanted = asked.objects.size();
    std::vector<std::optional<Fits>> fits(found.size());
    // The best way to give asked objects their blobs.
    std::vector<std::size_t> order(std::max(wanted, std::min<std::size_t>(found.size(), 4)));
    std::iota(order.begin(), order.end(), 0);
    double best = -1;
    std::string best_reason;
    do {
        double sum = 0;
        std::vector<std::string> faults;
        for (std::size_t i = 0; i < wanted; ++i) {
            const Object& o = asked.objects[i];
            if (order[i] >= found.size() || found[order[i]].area() < 150 || found[order[i]].area() > 4500) {
                faults.push_back(fmt::format("no {} {}", o.colour, o.shape));
                continue;
            }
            const Blob& blob = found[order[i]];
            std::optional<Fits>& fit = fits[order[i]];
            if (!fit) fit = fits_of(blob);
            const double c = colour_match(blob.colour, colour_of(o.colour)), s = shape_match(*fit, o.shape);
            if (c < 0.5) faults.push_back(fmt::format("the {} is not {}", o.shape, o.colour));
            if (s < 0.5) faults.push_back(fmt::format("the {} thing is no clear {}", o.colour, o.shape));
            sum += 0.15 * c + 0.15 * s + 0.7 * c * s;
        }
        double score = sum / static_cast<double>(wanted);
        if (!asked.relation.empty() && wanted == 2 && order[0] < found.size() && order[1] < found.size()) {
            const Blob &a = found[order[0]], &b = found[order[1]];
            const bool holds = asked.relation == "above" ? a.y + 10 < b.y : a.x + 10 < b.x;
            if (!holds) {
                score *= 0.5;
                faults.push_back(fmt::format("the {} is not {} the {}", asked.objects[0].shape, asked.relation,
                                             asked.objects[1].shape));
            }
        }
        if (score > best) {
            best = score;
            best_reason = fmt::format("{}", fmt::join(faults, "; "));
        }
    } while (std::next_permutation(order.begin(), order.end()));
    double f = best * (0.3 + 0.7 * frame);
    if (frame < 0.5) best_reason += fmt::format("{}the background is not {}", best_reason.empty() ? "" : "; ", asked.background);
    if (found.size() > wanted) {
        f *= std::max(0.2, 1 - 0.3 * static_cast<double>(found.size() - wanted));
        best_reason += fmt::format("{}{} things that were not asked for", best_reason.empty() ? "" : "; ", found.size() - wanted);
    }
    return {true, likert(f), best_reason.empty() ? "everything asked for is there" : best_reason};
}

/// Dark pixels where glasses' rims would be, pupils not counted.
double glasses_match(Picture p, bool asked) {
    int dark = 0;
    for (int y = 54; y < 73; ++y)
        for (int x = 44; x < 84; ++x) {
            const Colour c = pixel(p, x, y);
            if (c[0] + c[1] + c[2] < 190) ++dark;
        }
    const double worn = std::clamp((dark - 80) / 70.0, 0.0, 1.0);
    return asked ? worn : 1 - worn;
}

Measurement measure_person(Picture p, const Scene& asked) {
    const Colour skin = skin_colour(asked.face.skin), hair = hair_colour_of(asked.hair_colour);
    const Colour background = portrait_background(asked.background);
    // Cheeks (below the rims, above the mouth) and chin: skin whatever the face's size.
    const double face = std::min({coverage(p, 50, 57, 73, 77, skin), coverage(p, 71, 78, 73, 77, skin), coverage(p, 60, 68, 90, 94, skin)});
    const double top = coverage(p, 52, 76, 34, 42, hair);
    // Beside the jaw long hair covers at least half of these columns, short hair none.
    const Colour& beside = asked.face.hair_style == "long" ? hair : background;
    const double style = std::min(1.0, coverage(p, 33, 37, 84, 90, beside) + coverage(p, 91, 95, 84, 90, beside));
    const double glasses = glasses_match(p, asked.glasses);
    const double behind = (coverage(p, 0, 18, 2, 60, background) + coverage(p, 110, 128, 2, 60, background)) / 2;
    const double f = face * (0.2 + 0.25 * top + 0.15 * style * top + 0.2 * glasses * top + 0.2 * behind);
    std::vector<std::string> faults;
    if (face < 0.5) faults.push_back(fmt::format("no face with {} skin", asked.face.skin));
    if (top < 0.5) faults.push_back(fmt::format("the hair is not {}", asked.hair_colour));
    if (style < 0.5) faults.push_back(fmt::format("the hair is not {}", asked.face.hair_style));
    if (glasses < 0.5) faults.push_back(asked.glasses ? "no glasses" : "glasses that were not asked for");
    if (behind < 0.5) faults.push_back(fmt::format("the background is not {}", asked.background));
    return {true, likert(f), faults.empty() ? "everything asked for is there" : fmt::format("{}", fmt::join(faults, "; "))};
}

Measurement measure_landscape(Picture p, const Scene& asked) {
    const Colour sky = sky_colour(asked.time), ground = ground_colour(asked.ground, asked.time);
    const Colour lamp = asked.time == "night" ? Colour{235, 235, 215} : Colour{255, 225, 70};
    // By night sky and sea are nearly alike: a row counts for what it is nearer to.
    const auto nearer = [&](int y0, int y1, const Colour& mine, const Colour& other) {
        double sum = 0;
        for (int y = y0; y < y1; ++y)
            for (int x = 0; x < side; ++x) {
                const Colour c = pixel(p, x, y);
                if (distance(c, mine) < distance(c, other)) sum += falling(distance(c, mine), 25, 60);
            }
        return sum / ((y1 - y0) * side);
    };
    const double above = nearer(0, 12, sky, ground), below = nearer(116, side, ground, sky);
    const auto lamps = blobs(p, [&](int x, int y) { return y < 70 && distance(pixel(p, x, y), lamp) < 55; }, 40);
    // A disc of radius 12 has 452 pixels.
    const double lit = lamps.size() == 1 ? falling(std::abs(lamps[0].area() - 430), 130, 400) * std::clamp((overlap(lamps[0], "circle") - 0.6) / 0.28, 0.0, 1.0) : 0;
    const Colour leaves = tree_colour(asked.time);
    const auto trees = blobs(p, [&](int x, int y) {
        const Colour c = pixel(p, x, y);
        return y > 60 && distance(c, leaves) < 45 && distance(c, leaves) < distance(c, ground);
    }, 60);
    const double counted = falling(std::abs(static_cast<double>(trees.size()) - asked.trees), 0, 2);
    double shaped = 1;
    for (const Blob& tree : trees) shaped = std::min(shaped, std::clamp((overlap(tree, "triangle") - 0.5) / 0.35, 0.0, 1.0));
    const double woods = counted * (0.5 + 0.5 * shaped);
    const double f = above * below * (0.5 + 0.3 * woods + 0.2 * lit);
    std::vector<std::string> faults;
    if (above < 0.5) faults.push_back(fmt::format("the sky is not that of {}", asked.time));
    if (below < 0.5) faults.push_back(fmt::format("the ground is no {}", asked.ground));
    if (counted < 1) faults.push_back(fmt::format("{} trees instead of {}", trees.size(), asked.trees));
    if (shaped < 0.5) faults.push_back("ragged trees");
    if (lit < 0.5) faults.push_back(asked.time == "night" ? "no clear moon" : "no clear sun");
    return {true, likert(f), faults.empty() ? "everything asked for is there" : fmt::format("{}", fmt::join(faults, "; "))};
}

/// Letter boxes in bitmap pixels against the picture: intersection over union of lit pixels, letter by letter.
double word_overlap(const std::vector<std::uint8_t>& ink, const std::string& word, int dx, int dy) {
    const int n = static_cast<int>(word.size());
    const int left = static_cast<int>(64 - (n * 6 - 1) * letter_scale / 2.0) + dx, top = 64 - 7 * letter_scale / 2 + dy;
    double sum = 0;
    for (int i = 0; i < n; ++i) {
        const auto rows = letter_bitmap(word[static_cast<std::size_t>(i)]);
        double both = 0, any = 0;
        for (int y = top - 3; y < top + 7 * letter_scale + 3; ++y)
            for (int x = left + (6 * i) * letter_scale - 3; x < left + (6 * i + 5) * letter_scale + 3; ++x) {
                if (x < 0 || y < 0 || x >= side || y >= side) continue;
                const int u = x - left - 6 * i * letter_scale, v = y - top;
                const bool letter = u >= 0 && v >= 0 && u < 5 * letter_scale && v < 7 * letter_scale &&
                                    (rows[static_cast<std::size_t>(v / letter_scale)] >> (4 - u / letter_scale) & 1) != 0;
                const bool lit = ink[pixel_index(x, y)] != 0;
                both += letter && lit;
                any += letter || lit;
            }
        sum += std::clamp((both / std::max(any, 1.0) - 0.45) / 0.4, 0.0, 1.0);
    }
    return sum / n;
}

Measurement measure_word(Picture p, const Scene& asked) {
    const Colour background = colour_of(asked.background), colour = colour_of(asked.colour);
    const double frame = background_match(p, background);
    std::vector<std::uint8_t> ink(pixel_count);
    double lit = 0, right = 0;
    for (int i = 0; i < pixel_count; ++i) {
        const Colour c = pixel(p, i % side, i / side);
        // The half-way line between background and ink.
        if (distance(c, background) < distance(colour, background) / 2) continue;
        ink[static_cast<std::size_t>(i)] = 1;
        ++lit;
        right += colour_match(c, colour);
    }
    const auto read = [&](const std::string& word) {
        double best = 0;
        for (int dy = -2; dy <= 2; dy += 2)
            for (int dx = -2; dx <= 2; dx += 2) best = std::max(best, word_overlap(ink, word, dx, dy));
        return best;
    };
    const double mine = read(asked.word), coloured = lit < 100 ? 0 : right / lit;
    std::string closer;
    for (std::string_view word : words)
        if (word != asked.word && read(std::string(word)) > mine) closer = word;
    const double f = mine * (closer.empty() ? 1 : 0.5) * (0.3 + 0.7 * coloured) * (0.3 + 0.7 * frame);
    std::vector<std::string> faults;
    if (!closer.empty()) faults.push_back(fmt::format("reads rather like {} than {}", closer, asked.word));
    if (mine < 0.7) faults.push_back(fmt::format("the letters of {} are not clear", asked.word));
    if (coloured < 0.5) faults.push_back(fmt::format("the letters are not {}", asked.colour));
    if (frame < 0.5) faults.push_back(fmt::format("the background is not {}", asked.background));
    return {true, likert(f), faults.empty() ? "everything asked for is there" : fmt::format("{}", fmt::join(faults, "; "))};
}

}  // namespace

Measurement measure_alignment(Picture picture, const Scene& asked) {
    if (asked.category == "portrait") return measure_person(picture, asked);
    if (asked.category == "landscape") return measure_landscape(picture, asked);
    if (asked.category == "typography") return measure_word(picture, asked);
    return measure_general(picture, asked);
}

}  // namespace atelier::world
