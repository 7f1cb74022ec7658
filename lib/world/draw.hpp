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

/// A shape of the world around its centre: circle, square, triangle or star. Throws Error(internal) for another.
class ShapeOutline {
  public:
    ShapeOutline(std::string_view shape, double radius);
    /// Signed, in pixels, negative inside, at (dx, dy) from the centre.
    double distance(double dx, double dy) const;
    /// Whether (dx, dy) is inside, without the way to the edge.
    bool covers(double dx, double dy) const;

  private:
    double radius_, half_side_ = 0;               ///< of a circle, of a square
    std::vector<std::array<double, 2>> corners_;  ///< of the others
};

/// 5 x 7 bitmap of a capital letter: seven rows, five bits each, the leftmost pixel in bit 4.
std::array<std::uint8_t, 7> letter_bitmap(char letter);
/// Letters are drawn at this many pixels per bitmap pixel; a letter advances six bitmap pixels.
inline constexpr int letter_scale = 6;

/// The picture: [side, side, 4] bytes RGBA, alpha 255, edges anti-aliased over one pixel.
std::vector<std::uint8_t> draw(const Scene& scene);

}  // namespace atelier::world
