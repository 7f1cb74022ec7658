#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "world/scene.hpp"

namespace atelier::world {

using Colour = std::array<double, 3>;  ///< red, green, blue in [0, 255]

/// The world's palette. Throws Error(internal) for a name that it does not have.
Colour colour_of(std::string_view name);
Colour skin_colour(std::string_view name);
Colour hair_colour_of(std::string_view name);
Colour portrait_background(std::string_view name);
Colour sky_colour(std::string_view time);
Colour ground_colour(std::string_view ground, std::string_view time);
Colour tree_colour(std::string_view time);

/// Signed distance in pixels to a shape of the world (negative inside), at (dx, dy) from its centre.
double shape_distance(std::string_view shape, double dx, double dy, double radius);

/// 5 x 7 bitmap of a capital letter: seven rows, five bits each, the leftmost pixel in bit 4.
std::array<std::uint8_t, 7> letter_bitmap(char letter);
/// Letters are drawn at this many pixels per bitmap pixel; a letter advances six bitmap pixels.
inline constexpr int letter_scale = 6;

/// The picture: [side, side, 4] bytes RGBA, alpha 255, edges anti-aliased over one pixel.
std::vector<std::uint8_t> draw(const Scene& scene);

}  // namespace atelier::world
