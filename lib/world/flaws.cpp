#include "world/flaws.hpp"

#include <algorithm>
#include <cmath>

#include "core/error.hpp"
#include "world/pixels.hpp"

namespace atelier::world {
namespace {

template <typename Table>
void change(std::string& value, const Table& table, Random& random) {
    const std::string before = value;
    while (value == before) value = std::string(table[random.below(table.size())]);
}

std::vector<double> channels_of(Picture picture) { return {picture.begin(), picture.end()}; }

std::vector<std::uint8_t> bytes_of(const std::vector<double>& values) {
    std::vector<std::uint8_t> bytes(values.size(), 255);
    for (std::size_t i = 0; i < values.size(); ++i)
        if (i % 4 != 3) bytes[i] = static_cast<std::uint8_t>(std::lround(std::clamp(values[i], 0.0, 255.0)));
    return bytes;
}

/// Gaussian of this standard deviation in pixels, rows then columns, edges repeated.
std::vector<double> smoothed(std::vector<double> values, double deviation) {
    const int reach = static_cast<int>(std::ceil(2.5 * deviation));
    std::vector<double> weight(static_cast<std::size_t>(reach) + 1);
    double sum = 0;
    for (int i = 0; i <= reach; ++i) {
        weight[static_cast<std::size_t>(i)] = std::exp(-i * i / (2 * deviation * deviation));
        sum += (i == 0 ? 1 : 2) * weight[static_cast<std::size_t>(i)];
    }
    for (const bool along_rows : {true, false}) {
        std::vector<double> next(values.size(), 255);
        for (int y = 0; y < side; ++y)
            for (int x = 0; x < side; ++x)
                for (std::size_t k = 0; k < 3; ++k) {
                    double v = 0;
                    for (int i = -reach; i <= reach; ++i) {
                        const int u = along_rows ? std::clamp(x + i, 0, side - 1) : x, w = along_rows ? y : std::clamp(y + i, 0, side - 1);
                        v += weight[static_cast<std::size_t>(std::abs(i))] * values[pixel_index(u, w) * 4 + k];
                    }
                    next[pixel_index(x, y) * 4 + k] = v / sum;
                }
        values = std::move(next);
    }
    return values;
}

/// A grid of normal numbers every 16 pixels, linear between.
std::vector<double> coarse_noise(Random& random) {
    constexpr int cells = side / 16 + 1;
    std::vector<double> grid(static_cast<std::size_t>(cells) * cells), noise(pixel_count);
    for (double& v : grid) v = random.normal();
    const auto at = [&](int x, int y) { return grid[static_cast<std::size_t>(y) * cells + static_cast<std::size_t>(x)]; };
    for (int y = 0; y < side; ++y)
        for (int x = 0; x < side; ++x) {
            const int i = x / 16, j = y / 16;
            const double u = x % 16 / 16.0, v = y % 16 / 16.0;
            noise[pixel_index(x, y)] = (1 - v) * ((1 - u) * at(i, j) + u * at(i + 1, j)) + v * ((1 - u) * at(i, j + 1) + u * at(i + 1, j + 1));
        }
    return noise;
}

/// An ellipse somewhere in the middle, blurred or filled with a colour from its rim.
void smear(std::vector<double>& values, double strength, Random& random) {
    const double rx = random.between(4, 6 + 18 * strength), ry = random.between(4, 6 + 14 * strength);
    const double cx = random.between(34, 94), cy = random.between(40, 98);
    const bool washed = random.below(2) == 0;
    const auto soft = smoothed(values, 2 + 5 * strength);
    const int rim_x = std::clamp(static_cast<int>(cx + rx + 2), 0, side - 1), rim_y = static_cast<int>(cy);
    const std::size_t rim = pixel_index(rim_x, rim_y) * 4;
    const Colour fill{values[rim], values[rim + 1], values[rim + 2]};
    for (int y = 0; y < side; ++y)
        for (int x = 0; x < side; ++x) {
            const double d = std::hypot((x + 0.5 - cx) / rx, (y + 0.5 - cy) / ry);
            const double share = std::clamp((1 - d) * std::min(rx, ry), 0.0, 1.0);
            for (std::size_t k = 0; k < 3; ++k) {
                const std::size_t at = pixel_index(x, y) * 4 + k;
                values[at] += share * ((washed ? soft[at] : fill[k]) - values[at]);
            }
        }
}

/// Noise of single pixels over a rectangle of up to a third of the picture.
void grain(std::vector<double>& values, double strength, Random& random) {
    const double deviation = random.between(2, 16);
    const int w = 8 + static_cast<int>(strength * random.between(20, 90)), h = 8 + static_cast<int>(strength * random.between(20, 90));
    const int x0 = static_cast<int>(random.below(static_cast<std::uint64_t>(side - w))), y0 = static_cast<int>(random.below(static_cast<std::uint64_t>(side - h)));
    for (int y = y0; y < y0 + h; ++y)
        for (int x = x0; x < x0 + w; ++x)
            for (std::size_t k = 0; k < 3; ++k) values[pixel_index(x, y) * 4 + k] += deviation * random.normal();
}

}  // namespace

Scene near_miss(const Scene& scene, Random& random) {
    Scene s = scene;
    if (s.category == "portrait") {
        switch (random.below(5)) {
            case 0: change(s.background, portrait_backgrounds, random); break;
            case 1: change(s.hair_colour, hair_colours, random); break;
            case 2: change(s.face.hair_style, hair_styles, random); break;
            case 3: change(s.face.skin, skins, random); break;
            default: s.glasses = !s.glasses;
        }
    } else if (s.category == "landscape") {
        switch (random.below(s.ground == "sea" ? 2 : 3)) {
            case 0: change(s.time, times, random); break;
            case 1:
                change(s.ground, grounds, random);
                if (s.ground == "sea") s.trees = 0;
                break;
            default: s.trees = (s.trees + 1 + static_cast<int>(random.below(3))) % 4;
        }
    } else if (s.category == "typography") {
        switch (random.below(3)) {
            case 0: change(s.word, words, random); break;
            case 1: change(s.colour, colours, random); break;
            default:
                change(s.background, plain_backgrounds, random);
        }
    } else {
        const std::size_t n = s.objects.size();
        const bool alike = n > 1 && s.relation.empty();
        const std::size_t chosen = n == 0 ? 0 : random.below(n);
        switch (n == 0 ? 4 : random.below(5)) {
            case 0: {
                std::string colour = s.objects[chosen].colour;
                change(colour, colours, random);
                for (std::size_t i = 0; i < n; ++i)
                    if (alike || i == chosen) s.objects[i].colour = colour;
                break;
            }
            case 1: {
                std::string shape = s.objects[chosen].shape;
                change(shape, shapes, random);
                for (std::size_t i = 0; i < n; ++i)
                    if (alike || i == chosen) s.objects[i].shape = shape;
                break;
            }
            case 2:  // one less, or a second where there was one
                if (n > 1) {
                    s.objects.erase(s.objects.begin() + static_cast<std::ptrdiff_t>(chosen));
                } else {
                    Object other = s.objects[0];
                    other.radius = s.objects[0].radius = std::min(20.0, other.radius);
                    s.objects[0].x = 36;
                    other.x = 92;
                    s.objects.push_back(other);
                }
                break;
            case 3:
                if (!s.relation.empty() && n == 2) {
                    std::swap(s.objects[0].x, s.objects[1].x);
                    std::swap(s.objects[0].y, s.objects[1].y);
                    break;
                }
                [[fallthrough]];
            default:
                change(s.background, plain_backgrounds, random);
        }
    }
    return s;
}

Scene other_person(const Scene& portrait, double share, Random& random) {
    Scene s = portrait;
    const Face other = random_scene("portrait", random).face;
    const auto move = [&](double& value, double to) { value += share * (to - value); };
    move(s.face.half_width, other.half_width);
    move(s.face.half_height, other.half_height);
    move(s.face.eye_distance, other.eye_distance);
    move(s.face.mouth_width, other.mouth_width);
    if (random.uniform() < share / 2) s.face.skin = other.skin;
    return s;
}

std::vector<std::uint8_t> spoil(Picture picture, Flaw flaw, double strength, Random& random) {
    ATELIER_CHECK(picture.size() == static_cast<std::size_t>(pixel_count) * 4, "{} bytes are no picture of the world", picture.size());
    std::vector<double> v = channels_of(picture);
    switch (flaw) {
        case Flaw::blurred: v = smoothed(std::move(v), 0.3 + 2.7 * strength); break;
        case Flaw::faded: {
            const double grey = random.between(80, 210), share = 0.8 * strength;
            for (double& c : v) c += share * (grey - c);
            break;
        }
        case Flaw::blotched:
            for (std::size_t k = 0; k < 3; ++k) {
                const auto noise = coarse_noise(random);
                for (std::size_t i = 0; i < noise.size(); ++i) v[4 * i + k] += 60 * strength * noise[i];
            }
            break;
        case Flaw::grainy: grain(v, strength, random); break;
        case Flaw::smeared: smear(v, strength, random); break;
    }
    return bytes_of(v);
}

std::vector<std::uint8_t> blend(Picture a, Picture b, double share) {
    ATELIER_CHECK(a.size() == b.size(), "pictures of {} and {} bytes", a.size(), b.size());
    std::vector<double> v = channels_of(a);
    for (std::size_t i = 0; i < v.size(); ++i) v[i] += share * (b[i] - v[i]);
    return bytes_of(v);
}

}  // namespace atelier::world
