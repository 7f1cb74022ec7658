#pragma once

#include "core/error.hpp"

namespace atelier {

/// What an `open` that failed with this errno is: input where no file can have the name (missing, too long, a loop of links), else io.
ErrorKind kind_of_failed_open(int reason);

}  // namespace atelier
