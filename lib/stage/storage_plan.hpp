#pragma once

#include <string>

#include "stage/context.hpp"

namespace atelier::stage {

/// Bytes on disk that a run of the configuration needs, by kind, with storage.keep as configured: a
/// table, and the most at any time. Reads the model's configuration files, of its weights no more than headers
/// where they are there, and counts the prompts where they are.
std::string describe_storage(const Context& context);

}  // namespace atelier::stage
