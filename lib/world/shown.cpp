#include "world/shown.hpp"

#include <algorithm>
#include <functional>
#include <span>

namespace atelier::world {
namespace {

template <typename Table, typename Field>
void vary(std::vector<Scene>& all, const Scene& s, const Table& table, Field field) {
    for (const auto value : table) {
        Scene other = s;
        field(other) = value;
        all.push_back(std::move(other));
    }
}

/// Fewer things, more of the same, or in the other order.
void vary_number(std::vector<Scene>& all, const Scene& s) {
    const std::size_t n = s.objects.size();
    for (std::size_t i = 0; n > 1 && i < n; ++i) {
        Scene other = s;
        other.objects.erase(other.objects.begin() + static_cast<std::ptrdiff_t>(i));
        if (n == 2) other.relation.clear();
        all.push_back(std::move(other));
    }
    if (n < 3 && s.relation.empty()) {
        Scene other = s;
        other.objects.push_back(other.objects[0]);
        all.push_back(std::move(other));
    }
    if (n == 2 && !s.relation.empty())
        for (const char* relation : {"left of", "above"}) {
            Scene other = s;
            other.relation = relation;
            all.push_back(other);
            std::swap(other.objects[0], other.objects[1]);
            all.push_back(std::move(other));
        }
}

/// Scenes that differ from this one in a property.
std::vector<Scene> neighbours(const Scene& s) {
    std::vector<Scene> all;
    if (s.category == "portrait") {
        vary(all, s, portrait_backgrounds, [](Scene& o) -> auto& { return o.background; });
        vary(all, s, hair_colours, [](Scene& o) -> auto& { return o.hair_colour; });
        vary(all, s, hair_styles, [](Scene& o) -> auto& { return o.face.hair_style; });
        vary(all, s, skins, [](Scene& o) -> auto& { return o.face.skin; });
        vary(all, s, std::array{false, true}, [](Scene& o) -> auto& { return o.glasses; });
    } else if (s.category == "landscape") {
        vary(all, s, times, [](Scene& o) -> auto& { return o.time; });
        vary(all, s, grounds, [](Scene& o) -> auto& { return o.ground; });
        if (s.ground != "sea") vary(all, s, std::array{0, 1, 2, 3}, [](Scene& o) -> auto& { return o.trees; });
        for (Scene& o : all)
            if (o.ground == "sea") o.trees = 0;
    } else if (s.category == "typography") {
        vary(all, s, words, [](Scene& o) -> auto& { return o.word; });
        vary(all, s, colours, [](Scene& o) -> auto& { return o.colour; });
        vary(all, s, plain_backgrounds, [](Scene& o) -> auto& { return o.background; });
    } else {
        vary(all, s, plain_backgrounds, [](Scene& o) -> auto& { return o.background; });
        const auto vary_objects = [&](const auto& table, std::string Object::*field) {
            if (s.relation.empty())  // all alike
                for (const auto value : table) {
                    Scene other = s;
                    for (Object& o : other.objects) o.*field = value;
                    all.push_back(std::move(other));
                }
            else
                for (std::size_t i = 0; i < s.objects.size(); ++i)
                    vary(all, s, table, [&](Scene& o) -> auto& { return o.objects[i].*field; });
        };
        vary_objects(colours, &Object::colour);
        vary_objects(shapes, &Object::shape);
        vary_number(all, s);
    }
    return all;
}

}  // namespace

Scene scene_shown(Picture picture, const Scene& start) {
    Scene best = start;
    double score = measure_alignment(picture, best).score;
    for (bool better = true; better;) {
        better = false;
        for (Scene& other : neighbours(best)) {
            const double s = measure_alignment(picture, other).score;
            if (s < score + 0.05) continue;
            best = std::move(other);
            score = s;
            better = true;
            break;
        }
    }
    return best;
}

}  // namespace atelier::world
