#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <vector>

#include "core/philox.hpp"

namespace atelier::world {

/// A portrait and a picture that may show the same person: what a face embedding is trained and measured on.
struct IdentityPair {  // NOLINT(bugprone-exception-escape): JSON moves without an exception
    std::vector<std::uint8_t> source, result;  ///< [side, side, 4] RGBA
    std::string kind;                          ///< edited, another, mixed (some of the face is another's), faceless
    bool damaged = false;                      ///< the result is blurred, faded, blotched or moved
    nlohmann::json attributes;                 ///< of the edit that the source is of
    double truth = 1;                          ///< measure_identity of the result, [1, 5]
};

/// Of 20 pairs: 7 edited, 5 another person, 6 mixed, 2 without a face; 60 % of the results damaged.
IdentityPair random_identity_pair(Random& random);

}  // namespace atelier::world
