#pragma once

#include "stage/context.hpp"

namespace atelier::stage {

/// Applies storage.keep to a directory of shards whose result is published: `all` leaves it;
/// `summary` publishes it anew without states and final latents; `nothing` leaves the manifest
/// alone, without outputs. The manifest stays true at every moment.
void retain(const Context& context, const std::filesystem::path& directory);

}  // namespace atelier::stage
