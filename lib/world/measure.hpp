#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "world/scene.hpp"

namespace atelier::world {

/// One dimension's verdict on one picture: a score on the 5-point scale, real-valued, with its reason.
struct Measurement {
    bool present = true;  ///< false: the dimension does not apply (portrait without a face)
    double score = 1;     ///< [1, 5]
    std::string reason;
};

/// RGBA bytes [side, side, 4].
using Picture = std::span<const std::uint8_t>;

/// How well a picture shows what was asked: things present with their colour, shape, count and place; unasked things and a
/// wrong background cost. Nothing is credited that isn't there: a blank picture scores 1.
Measurement measure_alignment(Picture picture, const Scene& asked);
/// Flat areas flat, edges crisp, something to see; whatever was asked.
Measurement measure_aesthetics(Picture picture);
/// A face with two like eyes, nose and mouth where they belong; absent unless a portrait was asked.
Measurement measure_portrait(Picture picture, const Scene& asked);
/// The edit was done, and everything else is as it was.
Measurement measure_instruction(Picture picture, const Edit& edit);
/// The person is the same as in the source; absent without a face there.
Measurement measure_identity(Picture picture, const Edit& edit);

/// All dimensions of a prompt by name, from its `attributes` (a scene, or an edit). Throws Error(input) for attributes of
/// another world and pictures of another size.
std::map<std::string, Measurement> measure(const nlohmann::json& attributes, Picture picture);

}  // namespace atelier::world
