#include <fmt/format.h>

#include "world/pixels.hpp"

namespace atelier::world {
namespace {

/// Mean distance to a drawn picture over the pixels for which `chosen` holds; -1 without any.
double mean_distance(Picture p, Picture drawn, const std::function<bool(int x, int y)>& chosen) {
    double sum = 0, n = 0;
    for (int y = 0; y < side; ++y)
        for (int x = 0; x < side; ++x) {
            if (!chosen(x, y)) continue;
            sum += std::min(150.0, distance(pixel(p, x, y), pixel(drawn, x, y)));
            ++n;
        }
    return n == 0 ? -1 : sum / n;
}

}  // namespace

Measurement measure_instruction(Picture picture, const Edit& edit) {
    const auto before = draw(edit.source), after = draw(edit.result);
    const Colour background = edit.source.category == "portrait" ? portrait_background(edit.source.background)
                                                                 : colour_of(edit.source.background);
    const auto changed = [&](int x, int y) { return distance(pixel(before, x, y), pixel(after, x, y)) > 20; };
    const auto kept_thing = [&](int x, int y) { return !changed(x, y) && distance(pixel(before, x, y), background) > 30; };
    const auto kept_ground = [&](int x, int y) { return !changed(x, y) && distance(pixel(before, x, y), background) <= 30; };
    const double to_after = mean_distance(picture, after, changed), to_before = mean_distance(picture, before, changed);
    const double span = mean_distance(before, after, changed);
    // Thin rims come back from the VAE smeared by about this much.
    const double missed = std::max(0.0, to_after - 15);
    // 1 when the changed region looks as asked, 0 when it looks as before or like neither.
    const double done = std::clamp((to_before - missed) / (0.9 * span), 0.0, 1.0) * falling(missed / span, 0.15, 0.7);
    const double things = mean_distance(picture, before, kept_thing), ground = mean_distance(picture, before, kept_ground);
    // A changed background leaves only the seam's pixels in `ground`: they say nothing about what was kept.
    const double kept = std::min(things < 0 ? 1.0 : falling(things, 12, 55),
                                 ground < 0 || edit.kind == "background" ? 1.0 : falling(ground, 8, 35));
    std::string reason = "done, and everything else is as it was";
    if (done < 0.3)
        reason = fmt::format("the {} was not done", edit.kind);
    else if (done < 0.8)
        reason = fmt::format("the {} was done in part", edit.kind);
    if (kept < 0.5) reason += kept < 0.2 ? "; the rest was lost" : "; other things changed as well";
    return {true, likert(done * (0.15 + 0.85 * kept)), reason};
}

Measurement measure_identity(Picture picture, const Edit& edit) {
    if (edit.source.category != "portrait") return {false, 1, "no face in the source"};
    const auto before = draw(edit.source);
    const Face& f = edit.source.face;
    const auto inside = [&](int x, int y) {
        const double dx = (x + 0.5 - 64) / (f.half_width - 1), dy = (y + 0.5 - 64) / (f.half_height - 1);
        return dx * dx + dy * dy < 1;
    };
    // Below the eyes: neither glasses nor hair reach there. The outline just outside tells the face's shape.
    const auto lower_face = [&](int x, int y) { return y > 75 && inside(x, y); };
    const auto outline = [&](int x, int y) {
        const double dx = (x + 0.5 - 64) / f.half_width, dy = (y + 0.5 - 64) / f.half_height, r = dx * dx + dy * dy;
        return y > 75 && y < 92 && r > 0.86 && r < 1;
    };
    const auto features = [&](int x, int y) {  // mouth and nose
        return x > 48 && x < 80 && y > 75 && y < 92 && distance(pixel(before, x, y), skin_colour(f.skin)) > 30;
    };
    const double skin = mean_distance(picture, before, lower_face);
    if (skin > 70) return {true, 1, "the face was lost"};
    const double face = falling(skin, 10, 50), shape = falling(mean_distance(picture, before, outline), 14, 60);
    const double mouth = falling(mean_distance(picture, before, features), 25, 80);
    std::string reason = "the same person";
    if (face < 0.5)
        reason = "another face";
    else if (shape < 0.5)
        reason = "the face has another shape";
    else if (mouth < 0.5)
        reason = "the mouth has changed";
    return {true, likert(face * (0.4 + 0.3 * shape + 0.3 * mouth)), reason};
}

}  // namespace atelier::world
