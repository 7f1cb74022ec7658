#pragma once

#include "stage/context.hpp"

namespace atelier::stage {

/// Holds a run to the model that it began with. RUN/model.json has bytes, time of change and digest of every .json and .safetensors file of
/// run.model's components; the first stage publishes it. Later ones look at sizes and times, and where these differ at the bytes: stages take
/// over each other's samples and states, and the hashes in those are of the policy alone, not of what it is used with. Throws Error(input)
/// naming a file that was changed, added or taken away. Collective.
void require_same_model(const Context& context);

}  // namespace atelier::stage
