#include "identity_pairs.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "world/draw.hpp"
#include "world/measure.hpp"

namespace atelier::world {
namespace {

using Bytes = std::vector<std::uint8_t>;

double between(double low, double high, Random& random) { return low + (high - low) * random.uniform(); }

std::uint8_t byte_of(double value) { return static_cast<std::uint8_t>(std::lround(std::clamp(value, 0.0, 255.0))); }

/// Two passes of a normal kernel, edges repeated.
Bytes blurred(const Bytes& picture, double sigma) {
    const int reach = static_cast<int>(std::ceil(3 * sigma));
    std::vector<double> kernel(static_cast<std::size_t>(reach) + 1);
    double sum = 0;
    for (int i = 0; i <= reach; ++i) {
        kernel[static_cast<std::size_t>(i)] = std::exp(-0.5 * i * i / (sigma * sigma));
        sum += (i == 0 ? 1 : 2) * kernel[static_cast<std::size_t>(i)];
    }
    Bytes from = picture, to = picture;
    for (const bool along_rows : {true, false}) {
        for (int y = 0; y < side; ++y)
            for (int x = 0; x < side; ++x)
                for (std::size_t c = 0; c < 3; ++c) {
                    double value = 0;
                    for (int d = -reach; d <= reach; ++d) {
                        const int sx = along_rows ? std::clamp(x + d, 0, side - 1) : x, sy = along_rows ? y : std::clamp(y + d, 0, side - 1);
                        value += kernel[static_cast<std::size_t>(std::abs(d))] * from[pixel_index(sx, sy) * 4 + c];
                    }
                    to[pixel_index(x, y) * 4 + c] = byte_of(value / sum);
                }
        from = to;
    }
    return to;
}

/// Mixed with one grey.
void fade(Bytes& picture, double share, double grey) {
    for (std::size_t i = 0; i < picture.size(); ++i)
        if (i % 4 != 3) picture[i] = byte_of(picture[i] * (1 - share) + grey * share);
}

/// Colour noise of 16-pixel grain, bilinear between the grains.
void blotch(Bytes& picture, double strength, Random& random) {
    constexpr int grains = side / 16 + 1;
    std::array<double, static_cast<std::size_t>(grains) * grains * 3> noise{};
    for (double& n : noise) n = strength * std::sqrt(-2 * std::log(1 - random.uniform())) * std::cos(2 * std::numbers::pi * random.uniform());
    for (int y = 0; y < side; ++y)
        for (int x = 0; x < side; ++x)
            for (std::size_t c = 0; c < 3; ++c) {
                const int gx = x / 16, gy = y / 16;
                const double u = x % 16 / 16.0, v = y % 16 / 16.0;
                const auto at = [&](int i, int j) { return noise[(static_cast<std::size_t>(gy + j) * grains + static_cast<std::size_t>(gx + i)) * 3 + c]; };
                auto& value = picture[pixel_index(x, y) * 4 + c];
                value = byte_of(value + (1 - v) * ((1 - u) * at(0, 0) + u * at(1, 0)) + v * ((1 - u) * at(0, 1) + u * at(1, 1)));
            }
}

Bytes moved(const Bytes& picture, int dx, int dy) {
    Bytes out(picture.size());
    for (int y = 0; y < side; ++y)
        for (int x = 0; x < side; ++x)
            std::copy_n(picture.begin() + (std::clamp(y - dy, 0, side - 1) * side + std::clamp(x - dx, 0, side - 1)) * 4, 4,
                        out.begin() + (y * side + x) * 4);
    return out;
}

Bytes damaged(Bytes picture, Random& random) {
    const auto kind = random.below(5);
    if (kind == 0 || kind == 4) picture = blurred(picture, between(0.5, 5, random));
    if (kind == 1 || kind == 4) fade(picture, between(0.1, 0.75, random), between(90, 200, random));
    if (kind == 2) blotch(picture, between(5, 45, random), random);
    if (kind == 3) picture = moved(picture, static_cast<int>(random.below(9)) - 4, static_cast<int>(random.below(9)) - 4);
    return picture;
}

/// Each of the face's traits another's with probability 1/2, lengths also half-way.
Face mixed(const Face& a, const Face& b, Random& random) {
    const auto length = [&](double x, double y) {
        const auto draw = random.below(4);
        return draw < 2 ? x : draw == 2 ? y : (x + y) / 2;
    };
    Face f = a;
    f.half_width = length(a.half_width, b.half_width);
    f.half_height = length(a.half_height, b.half_height);
    f.eye_distance = length(a.eye_distance, b.eye_distance);
    f.mouth_width = length(a.mouth_width, b.mouth_width);
    if (random.below(4) == 0) f.skin = b.skin;
    if (random.below(4) == 0) f.hair_style = b.hair_style;
    return f;
}

}  // namespace

IdentityPair random_identity_pair(Random& random) {
    IdentityPair pair;
    const Edit edit = random_edit("portrait", random);
    pair.attributes = to_json(edit);
    pair.source = draw(edit.source);
    const auto draw_kind = random.below(20);
    Scene shown = edit.result;
    if (draw_kind < 7) {
        pair.kind = "edited";
    } else if (draw_kind < 12) {
        pair.kind = "another";
        shown.face = random_scene("portrait", random).face;
    } else if (draw_kind < 18) {
        pair.kind = "mixed";
        shown.face = mixed(shown.face, random_scene("portrait", random).face, random);
    } else {
        static constexpr std::array<std::string_view, 3> others{"general", "landscape", "typography"};
        pair.kind = "faceless";
        shown = random_scene(others[random.below(others.size())], random);
    }
    pair.result = draw(shown);
    pair.damaged = random.below(10) < 6;
    if (pair.damaged) pair.result = damaged(std::move(pair.result), random);
    pair.truth = measure_identity(pair.result, edit).score;
    return pair;
}

}  // namespace atelier::world
