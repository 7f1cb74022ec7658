#include "world/draw.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>

#include "core/error.hpp"

namespace atelier::world {
namespace {

Colour lookup(const std::map<std::string_view, Colour>& table, std::string_view name, const char* what) {
    const auto found = table.find(name);
    ATELIER_CHECK(found != table.end(), "the world has no {} '{}'", what, name);
    return found->second;
}

/// An RGB canvas in doubles; primitives are painted in order by signed distance.
class Canvas {
  public:
    explicit Canvas(Colour background) {
        for (auto& pixel : pixels_) pixel = background;
    }
    /// Blends `colour` where distance(x, y) < 0, over one pixel at the edge. Pixel centres are at .5.
    template <typename Distance>
    void paint(Colour colour, Distance distance) {
        for (int y = 0; y < side; ++y)
            for (int x = 0; x < side; ++x) {
                const double cover = std::clamp(0.5 - distance(x + 0.5, y + 0.5), 0.0, 1.0);
                if (cover == 0) continue;
                Colour& pixel = pixels_[pixel_index(x, y)];
                for (int c = 0; c < 3; ++c) pixel[c] += cover * (colour[c] - pixel[c]);
            }
    }
    std::vector<std::uint8_t> bytes() const {
        std::vector<std::uint8_t> out(static_cast<std::size_t>(side) * side * 4, 255);
        for (std::size_t i = 0; i < pixels_.size(); ++i)
            for (int c = 0; c < 3; ++c)
                out[i * 4 + c] = static_cast<std::uint8_t>(std::lround(std::clamp(pixels_[i][c], 0.0, 255.0)));
        return out;
    }

  private:
    std::array<Colour, static_cast<std::size_t>(side) * side> pixels_;
};

/// First-order distance to an ellipse: exact enough at the edge, where it is used.
double ellipse(double dx, double dy, double rx, double ry) {
    const double k = std::hypot(dx / rx, dy / ry);
    const double slope = std::hypot(dx / (rx * rx), dy / (ry * ry));
    return slope == 0 ? -std::min(rx, ry) : k * (k - 1) / slope;
}

double box(double dx, double dy, double rx, double ry) { return std::max(std::abs(dx) - rx, std::abs(dy) - ry); }

using Corners = std::vector<std::array<double, 2>>;

bool is_inside(const Corners& p, double x, double y) {
    bool inside = false;
    for (std::size_t i = 0, j = p.size() - 1; i < p.size(); j = i++)
        if ((p[i][1] > y) != (p[j][1] > y) && x < (p[j][0] - p[i][0]) * (y - p[i][1]) / (p[j][1] - p[i][1]) + p[i][0]) inside = !inside;
    return inside;
}

double distance_to_edge(const Corners& p, double x, double y) {
    double nearest = 1e9;
    for (std::size_t i = 0, j = p.size() - 1; i < p.size(); j = i++) {
        const double ex = p[j][0] - p[i][0], ey = p[j][1] - p[i][1];
        const double wx = x - p[i][0], wy = y - p[i][1];
        const double t = std::clamp((wx * ex + wy * ey) / (ex * ex + ey * ey), 0.0, 1.0);
        nearest = std::min(nearest, std::hypot(wx - t * ex, wy - t * ey));
    }
    return nearest;
}

void draw_general(Canvas& canvas, const Scene& scene) {
    for (const Object& o : scene.objects) {
        const ShapeOutline outline(o.shape, o.radius);
        canvas.paint(colour_of(o.colour), [&](double x, double y) { return outline.distance(x - o.x, y - o.y); });
    }
}

void draw_portrait(Canvas& canvas, const Scene& scene) {
    const Face& f = scene.face;
    const Colour skin = skin_colour(f.skin), hair = hair_colour_of(scene.hair_colour);
    const Colour dark{35, 30, 35}, white{245, 245, 245}, lips{175, 60, 70}, shirt{95, 95, 125};
    const double cx = 64, cy = 64, w = f.half_width, h = f.half_height;
    canvas.paint(shirt, [&](double x, double y) { return ellipse(x - cx, y - 134, 46, 34); });
    if (f.hair_style == "long")
        canvas.paint(hair, [&](double x, double y) {
            return std::max(ellipse(x - cx, y - (cy + 2), w + 12, h + 14), y - (cy + h + 2));
        });
    canvas.paint(skin, [&](double x, double y) { return box(x - cx, y - (cy + h), 9, 12); });
    canvas.paint(skin, [&](double x, double y) { return ellipse(x - cx, y - cy, w, h); });
    // The cap of hair: a larger ellipse above the hair line.
    canvas.paint(hair, [&](double x, double y) {
        return std::max(ellipse(x - cx, y - (cy - 4), w + 5, h + 5), y - (cy - 0.42 * h));
    });
    const double eye_y = cy - 0.08 * h;
    for (double s : {-1.0, 1.0}) {
        const double ex = cx + s * f.eye_distance;
        canvas.paint(white, [&](double x, double y) { return ellipse(x - ex, y - eye_y, 5.5, 4); });
        canvas.paint(dark, [&](double x, double y) { return ellipse(x - ex, y - eye_y, 2.6, 2.6); });
    }
    canvas.paint(Colour{skin[0] * 0.78, skin[1] * 0.74, skin[2] * 0.72},
                 [&](double x, double y) { return ellipse(x - cx, y - (cy + 0.24 * h), 2.5, 4.5); });
    canvas.paint(lips, [&](double x, double y) {
        return ellipse(x - cx, y - (cy + 0.56 * h), f.mouth_width, 3.2);
    });
    if (scene.glasses) {
        for (double s : {-1.0, 1.0}) {
            const double ex = cx + s * f.eye_distance;
            canvas.paint(dark, [&](double x, double y) {
                return std::abs(ellipse(x - ex, y - eye_y, 9.5, 8.5)) - 1.3;
            });
        }
        const double gap = f.eye_distance - 9.5;
        if (gap > 0)
            canvas.paint(dark, [&](double x, double y) { return box(x - cx, y - eye_y, gap + 1, 1.3); });
    }
}

double horizon_at(const Scene& scene, double x) {
    if (scene.ground != "hills") return scene.horizon;
    return scene.horizon - 10 * std::sin((x + scene.sun_x) * std::numbers::pi / 64);
}

void draw_landscape(Canvas& canvas, const Scene& scene) {
    const bool night = scene.time == "night";
    const double sun_y = scene.time == "sunset" ? scene.horizon - 22 : 28;
    canvas.paint(night ? Colour{235, 235, 215} : Colour{255, 225, 70},
                 [&](double x, double y) { return std::hypot(x - scene.sun_x, y - sun_y) - 12; });
    canvas.paint(ground_colour(scene.ground, scene.time),
                 [&](double x, double y) { return horizon_at(scene, x) - y; });
    const Colour trunk = night ? Colour{50, 35, 25} : Colour{110, 70, 35};
    const ShapeOutline crown("triangle", 15);
    for (int i = 0; i < scene.trees; ++i) {
        const double tx = 64 + (i - (scene.trees - 1) / 2.0) * 36;
        canvas.paint(trunk, [&](double x, double y) { return box(x - tx, y - 104, 2.5, 9); });
        canvas.paint(tree_colour(scene.time), [&](double x, double y) {
            return crown.distance(x - tx, y - 86);
        });
    }
}

void draw_word(Canvas& canvas, const Scene& scene) {
    const int n = static_cast<int>(scene.word.size());
    const double left = 64 - (n * 6 - 1) * letter_scale / 2.0, top = 64 - 7 * letter_scale / 2.0;
    for (int i = 0; i < n; ++i) {
        const auto rows = letter_bitmap(scene.word[static_cast<std::size_t>(i)]);
        canvas.paint(colour_of(scene.colour), [&](double x, double y) {
            const double u = (x - left) / letter_scale - 6 * i, v = (y - top) / letter_scale;
            if (u < 0 || u >= 5 || v < 0 || v >= 7) return 1.0;
            return (rows[static_cast<std::size_t>(v)] >> (4 - static_cast<int>(u)) & 1) != 0 ? -1.0 : 1.0;
        });
    }
}

}  // namespace

Colour colour_of(std::string_view name) {
    static const std::map<std::string_view, Colour> table{
        {"red", {220, 40, 40}},     {"green", {40, 170, 70}},  {"blue", {45, 85, 220}},
        {"yellow", {240, 205, 40}}, {"purple", {145, 60, 175}}, {"orange", {240, 130, 30}},
        {"white", {240, 240, 240}}, {"gray", {150, 150, 150}}, {"black", {25, 25, 25}}};
    return lookup(table, name, "colour");
}
Colour skin_colour(std::string_view name) {
    static const std::map<std::string_view, Colour> table{
        {"light", {245, 208, 178}}, {"tan", {205, 150, 105}}, {"dark", {125, 80, 55}}};
    return lookup(table, name, "skin");
}
Colour hair_colour_of(std::string_view name) {
    static const std::map<std::string_view, Colour> table{
        {"black", {28, 24, 28}}, {"brown", {96, 58, 32}}, {"blond", {232, 198, 92}}, {"red", {186, 66, 28}}};
    return lookup(table, name, "hair colour");
}
Colour portrait_background(std::string_view name) {
    static const std::map<std::string_view, Colour> table{
        {"blue", {120, 165, 230}}, {"green", {130, 195, 135}}, {"gray", {170, 170, 170}}};
    return lookup(table, name, "portrait background");
}
Colour sky_colour(std::string_view time) {
    static const std::map<std::string_view, Colour> table{
        {"day", {135, 195, 245}}, {"sunset", {245, 150, 95}}, {"night", {25, 30, 75}}};
    return lookup(table, time, "time");
}
Colour ground_colour(std::string_view ground, std::string_view time) {
    static const std::map<std::string_view, Colour> table{
        {"hills", {95, 165, 75}}, {"sea", {40, 105, 190}}, {"desert", {225, 190, 120}}};
    Colour c = lookup(table, ground, "ground");
    const double dim = time == "night" ? 0.45 : time == "sunset" ? 0.8 : 1.0;
    for (double& v : c) v *= dim;
    return c;
}
Colour tree_colour(std::string_view time) {
    const double dim = time == "night" ? 0.5 : 1.0;
    return {20 * dim, 95 * dim, 40 * dim};
}

ShapeOutline::ShapeOutline(std::string_view shape, double r) : radius_(r) {
    if (shape == "square") half_side_ = 0.88 * r;
    if (shape == "triangle") corners_ = {{0, -r}, {r, 0.8 * r}, {-r, 0.8 * r}};
    if (shape == "star")
        for (int i = 0; i < 10; ++i) {
            const double angle = -std::numbers::pi / 2 + i * std::numbers::pi / 5, radius = i % 2 == 0 ? 1.1 * r : 0.48 * r;
            corners_.push_back({radius * std::cos(angle), radius * std::sin(angle)});
        }
    ATELIER_CHECK(shape == "circle" || half_side_ > 0 || !corners_.empty(), "the world has no shape '{}'", shape);
}

double ShapeOutline::distance(double dx, double dy) const {
    if (!corners_.empty()) return is_inside(corners_, dx, dy) ? -distance_to_edge(corners_, dx, dy) : distance_to_edge(corners_, dx, dy);
    return half_side_ > 0 ? box(dx, dy, half_side_, half_side_) : std::hypot(dx, dy) - radius_;
}

bool ShapeOutline::covers(double dx, double dy) const { return corners_.empty() ? distance(dx, dy) <= 0 : is_inside(corners_, dx, dy); }

std::array<std::uint8_t, 7> letter_bitmap(char letter) {
    static const std::map<char, std::array<std::uint8_t, 7>> table{
        {'A', {0x0e, 0x11, 0x11, 0x1f, 0x11, 0x11, 0x11}}, {'B', {0x1e, 0x11, 0x11, 0x1e, 0x11, 0x11, 0x1e}},
        {'C', {0x0f, 0x10, 0x10, 0x10, 0x10, 0x10, 0x0f}}, {'D', {0x1e, 0x11, 0x11, 0x11, 0x11, 0x11, 0x1e}},
        {'E', {0x1f, 0x10, 0x10, 0x1e, 0x10, 0x10, 0x1f}}, {'F', {0x1f, 0x10, 0x10, 0x1e, 0x10, 0x10, 0x10}},
        {'G', {0x0f, 0x10, 0x10, 0x13, 0x11, 0x11, 0x0f}}, {'L', {0x10, 0x10, 0x10, 0x10, 0x10, 0x10, 0x1f}},
        {'M', {0x11, 0x1b, 0x15, 0x15, 0x11, 0x11, 0x11}}, {'N', {0x11, 0x19, 0x15, 0x15, 0x13, 0x11, 0x11}},
        {'O', {0x0e, 0x11, 0x11, 0x11, 0x11, 0x11, 0x0e}}, {'P', {0x1e, 0x11, 0x11, 0x1e, 0x10, 0x10, 0x10}},
        {'R', {0x1e, 0x11, 0x11, 0x1e, 0x14, 0x12, 0x11}}, {'S', {0x0f, 0x10, 0x10, 0x0e, 0x01, 0x01, 0x1e}},
        {'T', {0x1f, 0x04, 0x04, 0x04, 0x04, 0x04, 0x04}}, {'U', {0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x0e}},
        {'X', {0x11, 0x11, 0x0a, 0x04, 0x0a, 0x11, 0x11}}, {'Y', {0x11, 0x11, 0x0a, 0x04, 0x04, 0x04, 0x04}}};
    const auto found = table.find(letter);
    ATELIER_CHECK(found != table.end(), "the world's font has no letter '{}'", letter);
    return found->second;
}

std::vector<std::uint8_t> draw(const Scene& scene) {
    const bool portrait = scene.category == "portrait", landscape = scene.category == "landscape";
    Canvas canvas(portrait    ? portrait_background(scene.background)
                  : landscape ? sky_colour(scene.time)
                              : colour_of(scene.background));
    if (portrait)
        draw_portrait(canvas, scene);
    else if (landscape)
        draw_landscape(canvas, scene);
    else if (scene.category == "typography")
        draw_word(canvas, scene);
    else
        draw_general(canvas, scene);
    return canvas.bytes();
}

}  // namespace atelier::world
