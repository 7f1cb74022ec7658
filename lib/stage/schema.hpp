#pragma once

#include <vector>

#include "config/config.hpp"

namespace atelier::stage {

/// Every key of the system: name, type and default, meaning, unit, range or choices.
const std::vector<config::Key>& schema();

}  // namespace atelier::stage
