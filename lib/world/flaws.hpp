#pragma once

#include <cstdint>
#include <vector>

#include "world/measure.hpp"
#include "world/scene.hpp"

// What can be wrong with a picture of the world: what a judge has to see.
namespace atelier::world {

/// The scene with one property changed: a colour, a shape, a count, the order, the background, hair, glasses, skin, the hour,
/// the ground, the trees, the word.
Scene near_miss(const Scene& scene, Random& random);

/// The portrait with another person's face: each of its lengths moved by `share` (0 to 1) of the way to another's.
Scene other_person(const Scene& portrait, double share, Random& random);

enum class Flaw {
    blurred,   ///< everywhere
    faded,     ///< towards one grey
    blotched,  ///< colour noise of 16-pixel grain
    grainy,    ///< noise of single pixels over a rectangle
    smeared,   ///< one part washed out or painted over
};
inline constexpr int flaw_count = 5;

/// RGBA bytes [side, side, 4] of the picture with a flaw; `strength` from 0 (none) to 1.
std::vector<std::uint8_t> spoil(Picture picture, Flaw flaw, double strength, Random& random);

/// (1 - share) a + share b, pixel by pixel.
std::vector<std::uint8_t> blend(Picture a, Picture b, double share);

}  // namespace atelier::world
