#pragma once

#include <chrono>

namespace atelier {

/// Seconds since 1970 by the system's clock: what is compared between ranks.
inline double seconds_since_1970() {
    return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace atelier
