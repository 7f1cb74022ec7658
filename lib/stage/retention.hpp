#pragma once

#include <functional>

#include "stage/context.hpp"

namespace atelier::stage {

/// Applies storage.keep to a directory of shards whose result is published: `all` leaves it;
/// `summary` publishes it anew without states, log-probabilities and velocities; `nothing` leaves the manifest
/// alone, without outputs. The manifest stays true at every moment.
void retain(const Context& context, const std::filesystem::path& directory);

/// Applies storage.states to a policy's iterations, or to the students of a distillation, once `newest` of them is published: the optimizer's
/// states of older ones are given up, first in their manifests, then on disk. What a killed stage left is removed too. `product`: the
/// directory of each.
void retain_states(const Context& context, std::int64_t newest, const std::function<std::filesystem::path(std::int64_t)>& product);

/// Whether a complete directory of shards was published anew without its trajectories, and a product without its optimizer's state.
bool gave_up_trajectories(const std::filesystem::path& directory);
bool gave_up_state(const std::filesystem::path& product);

/// Throws Error(input) where trajectories cannot be trained on: they were given up, or none are there. `made_by`: the program that makes them.
void require_trajectories(const std::filesystem::path& directory, const std::string& made_by);

/// Throws Error(input) where a product's optimizer state was given up: training cannot go on from it.
void require_state(const std::filesystem::path& product);

}  // namespace atelier::stage
