#pragma once

#include <string>

#include "stage/context.hpp"

namespace atelier::stage {

/// Bytes on disk that a run of the configuration needs, by kind, with storage.keep as configured: a
/// table, and the most at any time. Reads the model's configuration files and counts the prompts;
/// loads no weight.
std::string describe_storage(const Context& context);

}  // namespace atelier::stage
