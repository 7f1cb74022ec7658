#include "world/scene.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/error.hpp"

namespace atelier::world {
namespace {

using Json = nlohmann::json;

constexpr std::array<std::string_view, 4> count_words{"no", "one", "two", "three"};
constexpr std::array<std::string_view, 2> relations{"left of", "above"};

template <typename Table>
std::string pick(const Table& table, Random& random) {
    return std::string(table[random.below(table.size())]);
}
/// One that is not `taken`.
template <typename Table>
std::string pick_other(const Table& table, const std::string& taken, Random& random) {
    for (;;) {
        auto choice = pick(table, random);
        if (choice != taken) return choice;
    }
}
/// To a tenth of a pixel, so that JSON keeps it.
double tenth(double value) { return std::round(value * 10) / 10; }

template <typename Table>
std::string one_of(const Json& json, const char* key, const Table& table) {
    const auto found = json.find(key);
    ATELIER_CHECK_INPUT(found != json.end() && found->is_string(), "scene attributes: no text '{}'", key);
    auto value = found->get<std::string>();
    ATELIER_CHECK_INPUT(std::find(table.begin(), table.end(), value) != table.end(),
                        "scene attributes: {} = '{}' is not of this world", key, value);
    return value;
}
double number(const Json& json, const char* key, double low, double high) {
    const auto found = json.find(key);
    ATELIER_CHECK_INPUT(found != json.end() && found->is_number(), "scene attributes: no number '{}'", key);
    const double value = found->get<double>();
    ATELIER_CHECK_INPUT(value >= low && value <= high, "scene attributes: {} must lie in [{}, {}], found {}", key, low, high, value);
    return value;
}
double place(const Json& json, const char* key) { return number(json, key, -side, 2 * side); }
double length(const Json& json, const char* key) { return number(json, key, 2, side); }

struct Place {
    double x, y;
    const char* phrase;
};
constexpr std::array<Place, 4> places{
    {{36, 64, "on the left"}, {92, 64, "on the right"}, {64, 36, "at the top"}, {64, 92, "at the bottom"}}};

Object random_object(double x, double y, double low, double high, Random& random) {
    return {pick(shapes, random), pick(colours, random), tenth(x + random.between(-3, 3)),
            tenth(y + random.between(-3, 3)), tenth(random.between(low, high))};
}

/// Two objects of unlike shape and colour, the first left of or above the second.
Scene pair_scene(Random& random) {
    Scene scene;
    scene.category = "general";
    scene.background = pick(plain_backgrounds, random);
    scene.relation = random.below(2) == 0 ? "left of" : "above";
    const std::size_t first = scene.relation == "left of" ? 0 : 2;
    Object a = random_object(places[first].x, places[first].y, 19, 23, random);
    Object b = random_object(places[first + 1].x, places[first + 1].y, 19, 23, random);
    b.shape = pick_other(shapes, a.shape, random);
    b.colour = pick_other(colours, a.colour, random);
    scene.objects = {a, b};
    return scene;
}

Scene random_general(Random& random) {
    const auto kind = random.below(10);
    if (kind >= 6) return pair_scene(random);
    Scene scene;
    scene.category = "general";
    scene.background = pick(plain_backgrounds, random);
    const int count = kind < 2 ? 1 : kind < 4 ? 2 : 3;
    const Object model = random_object(64, 64, 24, 28, random);
    for (int i = 0; i < count; ++i) {
        Object o = model;
        if (count > 1) {
            o.radius = count == 2 ? 20 : 16;
            o.x = tenth(64 + (i - (count - 1) / 2.0) * (count == 2 ? 52 : 40) + random.between(-2, 2));
            o.y = tenth(64 + random.between(-2, 2));
        }
        scene.objects.push_back(o);
    }
    return scene;
}

Scene random_portrait(Random& random) {
    Scene scene;
    scene.category = "portrait";
    scene.background = pick(portrait_backgrounds, random);
    scene.face = {tenth(random.between(24, 31)), tenth(random.between(31, 38)), tenth(random.between(10.5, 14)),
                  tenth(random.between(7, 13)), pick(skins, random), pick(hair_styles, random)};
    scene.hair_colour = pick(hair_colours, random);
    scene.glasses = random.below(2) == 0;
    return scene;
}

Scene random_landscape(Random& random) {
    Scene scene;
    scene.category = "landscape";
    scene.time = pick(times, random);
    scene.ground = pick(grounds, random);
    scene.trees = scene.ground == "sea" ? 0 : static_cast<int>(random.below(4));
    scene.sun_x = tenth(random.between(24, 104));
    scene.horizon = tenth(random.between(68, 80));
    return scene;
}

Scene random_typography(Random& random) {
    Scene scene;
    scene.category = "typography";
    scene.word = pick(words, random);
    scene.background = pick(plain_backgrounds, random);
    scene.colour = pick(colours, random);
    return scene;
}

bool same_objects(const Scene& scene) {
    return scene.objects.size() > 1 && scene.relation.empty() &&
           scene.objects[0].shape == scene.objects[1].shape && scene.objects[0].colour == scene.objects[1].colour;
}

Edit edit_objects(Random& random) {
    static constexpr std::array<std::string_view, 4> kinds{"recolour", "add", "remove", "replace"};
    Edit edit;
    edit.kind = pick(kinds, random);
    edit.source = pair_scene(random);
    if (edit.kind == "add") {
        const std::size_t keep = random.below(2);
        const std::size_t place = (edit.source.relation == "left of" ? 0 : 2) + 1 - keep;
        edit.result = edit.source;
        const Object& added = edit.result.objects[1 - keep];
        edit.instruction = fmt::format("add a {} {} {}", added.colour, added.shape, places[place].phrase);
        edit.source.objects = {edit.result.objects[keep]};
        edit.source.relation.clear();
        return edit;
    }
    edit.result = edit.source;
    const std::size_t chosen = random.below(2);
    Object& object = edit.result.objects[chosen];
    const Object& other = edit.result.objects[1 - chosen];
    if (edit.kind == "recolour") {
        const std::string shape = object.shape;
        do object.colour = pick(colours, random);
        while (object.colour == edit.source.objects[chosen].colour || object.colour == other.colour);
        edit.instruction = fmt::format("make the {} {}", shape, object.colour);
    } else if (edit.kind == "replace") {
        const std::string before = object.shape;
        do object.shape = pick(shapes, random);
        while (object.shape == before || object.shape == other.shape);
        edit.instruction = fmt::format("replace the {} with a {}", before, object.shape);
    } else {
        edit.instruction = fmt::format("remove the {}", object.shape);
        edit.result.objects.erase(edit.result.objects.begin() + static_cast<std::ptrdiff_t>(chosen));
        edit.result.relation.clear();
    }
    return edit;
}

Edit edit_portrait(Random& random) {
    static constexpr std::array<std::string_view, 3> kinds{"hair", "glasses", "background"};
    Edit edit;
    edit.kind = pick(kinds, random);
    edit.source = random_portrait(random);
    edit.result = edit.source;
    if (edit.kind == "hair") {
        edit.result.hair_colour = pick_other(hair_colours, edit.source.hair_colour, random);
        edit.instruction = fmt::format("change the hair to {}", edit.result.hair_colour);
    } else if (edit.kind == "glasses") {
        edit.result.glasses = !edit.source.glasses;
        edit.instruction = edit.result.glasses ? "add glasses" : "remove the glasses";
    } else {
        edit.result.background = pick_other(portrait_backgrounds, edit.source.background, random);
        edit.instruction = fmt::format("change the background to {}", edit.result.background);
    }
    return edit;
}

}  // namespace

Json to_json(const Scene& s) {
    Json json{{"category", s.category}};
    if (s.category == "portrait") {
        json.update({{"background", s.background}, {"hair_colour", s.hair_colour}, {"glasses", s.glasses},
                     {"hair_style", s.face.hair_style}, {"skin", s.face.skin}, {"half_width", s.face.half_width},
                     {"half_height", s.face.half_height}, {"eye_distance", s.face.eye_distance},
                     {"mouth_width", s.face.mouth_width}});
    } else if (s.category == "landscape") {
        json.update({{"time", s.time}, {"ground", s.ground}, {"trees", s.trees}, {"sun_x", s.sun_x},
                     {"horizon", s.horizon}});
    } else if (s.category == "typography") {
        json.update({{"background", s.background}, {"word", s.word}, {"colour", s.colour}});
    } else {
        json["background"] = s.background;
        if (!s.relation.empty()) json["relation"] = s.relation;
        json["objects"] = Json::array();
        for (const Object& o : s.objects)
            json["objects"].push_back(
                {{"shape", o.shape}, {"colour", o.colour}, {"x", o.x}, {"y", o.y}, {"radius", o.radius}});
    }
    return json;
}

Scene scene_from_json(const Json& json) {
    static constexpr std::array<std::string_view, 4> categories{"general", "portrait", "landscape", "typography"};
    ATELIER_CHECK_INPUT(json.is_object(), "scene attributes are not an object");
    Scene s;
    s.category = one_of(json, "category", categories);
    if (s.category == "portrait") {
        s.background = one_of(json, "background", portrait_backgrounds);
        s.hair_colour = one_of(json, "hair_colour", hair_colours);
        const auto glasses = json.find("glasses");
        ATELIER_CHECK_INPUT(glasses != json.end() && glasses->is_boolean(), "scene attributes: no truth value 'glasses'");
        s.glasses = glasses->get<bool>();
        s.face = {length(json, "half_width"), length(json, "half_height"), length(json, "eye_distance"),
                  length(json, "mouth_width"), one_of(json, "skin", skins), one_of(json, "hair_style", hair_styles)};
    } else if (s.category == "landscape") {
        s.time = one_of(json, "time", times);
        s.ground = one_of(json, "ground", grounds);
        s.trees = static_cast<int>(number(json, "trees", 0, 3));
        s.sun_x = place(json, "sun_x");
        s.horizon = place(json, "horizon");
    } else if (s.category == "typography") {
        s.background = one_of(json, "background", plain_backgrounds);
        s.word = one_of(json, "word", words);
        s.colour = one_of(json, "colour", colours);
    } else {
        s.background = one_of(json, "background", plain_backgrounds);
        if (json.contains("relation")) s.relation = one_of(json, "relation", relations);
        const auto objects = json.find("objects");
        ATELIER_CHECK_INPUT(objects != json.end() && objects->is_array() && objects->size() <= 3,
                            "scene attributes: 'objects' is not a list of at most three");
        for (const Json& o : *objects)
            s.objects.push_back({one_of(o, "shape", shapes), one_of(o, "colour", colours), place(o, "x"),
                                 place(o, "y"), length(o, "radius")});
    }
    return s;
}

Scene random_scene(std::string_view category, Random& random) {
    if (category == "general") return random_general(random);
    if (category == "portrait") return random_portrait(random);
    if (category == "landscape") return random_landscape(random);
    ATELIER_CHECK_USAGE(category == "typography", "the world has no category '{}'", category);
    return random_typography(random);
}

std::string caption(const Scene& s, bool second_first) {
    if (s.category == "portrait")
        return fmt::format("portrait of a person with {} skin , {} {} hair {} glasses on {}", s.face.skin,
                           s.face.hair_style, s.hair_colour, s.glasses ? "with" : "without", s.background);
    if (s.category == "landscape") {
        const std::string trees =
            s.ground == "sea" ? ""
                              : fmt::format(" with {} {}", count_words[static_cast<std::size_t>(s.trees)],
                                            s.trees == 1 ? "tree" : "trees");
        return fmt::format("landscape of {} at {}{}", s.ground, s.time, trees);
    }
    if (s.category == "typography") return fmt::format("the word {} in {} on {}", s.word, s.colour, s.background);
    const Object& a = s.objects.at(0);
    if (s.objects.size() == 1) return fmt::format("one {} {} on {}", a.colour, a.shape, s.background);
    if (same_objects(s))
        return fmt::format("{} {} {}s on {}", count_words[s.objects.size()], a.colour, a.shape, s.background);
    const Object& b = s.objects.at(1);
    if (!second_first)
        return fmt::format("a {} {} {} a {} {} on {}", a.colour, a.shape, s.relation, b.colour, b.shape, s.background);
    return fmt::format("a {} {} {} a {} {} on {}", b.colour, b.shape, s.relation == "above" ? "below" : "right of",
                       a.colour, a.shape, s.background);
}

std::string caption(const Scene& s, Random& random) {
    const bool pair = s.category == "general" && s.objects.size() > 1 && !same_objects(s);
    return caption(s, pair && random.below(2) != 0);
}

Edit random_edit(std::string_view category, Random& random) {
    if (category == "portrait") return edit_portrait(random);
    ATELIER_CHECK_USAGE(category == "general", "the world has no edits of category '{}'", category);
    return edit_objects(random);
}

Json to_json(const Edit& edit) {
    return {{"edit", edit.kind}, {"source", to_json(edit.source)}, {"result", to_json(edit.result)}};
}

Edit edit_from_json(const Json& json) {
    static constexpr std::array<std::string_view, 7> kinds{"recolour", "add",     "remove",    "replace",
                                                           "hair",     "glasses", "background"};
    ATELIER_CHECK_INPUT(json.is_object() && json.contains("source") && json.contains("result"),
                        "edit attributes: no 'source' and 'result'");
    Edit edit;
    edit.kind = one_of(json, "edit", kinds);
    edit.source = scene_from_json(json["source"]);
    edit.result = scene_from_json(json["result"]);
    return edit;
}

}  // namespace atelier::world
