#pragma once

#include <array>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "core/philox.hpp"

namespace atelier::world {

/// The procedural world: scenes that a program can draw and measure. Pictures are `side` x `side` pixels.
inline constexpr int side = 128;

/// Number of a pixel in row order.
constexpr std::size_t pixel_index(int x, int y) { return static_cast<std::size_t>(y) * side + static_cast<std::size_t>(x); }

inline constexpr std::array<std::string_view, 4> shapes{"circle", "square", "triangle", "star"};
inline constexpr std::array<std::string_view, 6> colours{"red", "green", "blue", "yellow", "purple", "orange"};
inline constexpr std::array<std::string_view, 3> plain_backgrounds{"white", "gray", "black"};
inline constexpr std::array<std::string_view, 3> portrait_backgrounds{"blue", "green", "gray"};
inline constexpr std::array<std::string_view, 3> skins{"light", "tan", "dark"};
inline constexpr std::array<std::string_view, 4> hair_colours{"black", "brown", "blond", "red"};
inline constexpr std::array<std::string_view, 2> hair_styles{"short", "long"};
inline constexpr std::array<std::string_view, 3> times{"day", "sunset", "night"};
inline constexpr std::array<std::string_view, 3> grounds{"hills", "sea", "desert"};
inline constexpr std::array<std::string_view, 8> words{"SUN", "CAT", "DOG", "ART", "TEA", "BOX", "MAP", "FLY"};

/// A coloured shape: centre and half size in pixels.
struct Object {
    std::string shape, colour;
    double x = 64, y = 64, radius = 20;
};

/// Who a portrait shows: what stays the same through edits. Lengths in pixels.
struct Face {
    double half_width = 27, half_height = 34, eye_distance = 12, mouth_width = 10;
    std::string skin = "light", hair_style = "short";
};

/// One picture. `category` is general, portrait, landscape or typography; the fields of the others are unused.
struct Scene {
    std::string category;
    std::string background;
    std::vector<Object> objects;  ///< general
    std::string relation;         ///< general with two unlike objects: "left of" or "above"
    Face face;                    ///< portrait
    std::string hair_colour;
    bool glasses = false;
    std::string time, ground;     ///< landscape
    int trees = 0;
    double sun_x = 96, horizon = 76;
    std::string word, colour;     ///< typography
};

nlohmann::json to_json(const Scene& scene);
/// Throws Error(input) naming what is missing or not of this world.
Scene scene_from_json(const nlohmann::json& json);

/// A scene of the category, every choice from `random`.
Scene random_scene(std::string_view category, Random& random);

/// What a person would ask to get this picture; `random` picks among phrasings.
std::string caption(const Scene& scene, Random& random);
/// The same with the order of two unlike objects given: the second one first ("right of", "below") or not.
std::string caption(const Scene& scene, bool second_first);

/// An edit: the picture before, the instruction, the picture after.
struct Edit {
    std::string kind;  ///< recolour, add, remove, replace, hair, glasses, background
    Scene source, result;
    std::string instruction;
};

/// `category` is general or portrait.
Edit random_edit(std::string_view category, Random& random);

nlohmann::json to_json(const Edit& edit);
Edit edit_from_json(const nlohmann::json& json);

}  // namespace atelier::world
