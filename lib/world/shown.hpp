#pragma once

#include "world/measure.hpp"
#include "world/scene.hpp"

namespace atelier::world {

/// The scene that a picture shows rather than `start`: one property after another (colours, shapes, how many, their order,
/// background, hair, glasses, skin, the hour, the ground, the trees, the word) takes the value that measure_alignment likes
/// best, for as long as that helps. What the measure does not tell apart stays as in `start`, its category always.
Scene scene_shown(Picture picture, const Scene& start);

}  // namespace atelier::world
