#pragma once

#include <charconv>
#include <chrono>
#include <cstdlib>
#include <cstring>

namespace atelier::comm {

/// How long a rank waits for the others to start: ATELIER_LAUNCHER_PATIENCE (seconds), five minutes without it.
inline std::chrono::seconds launcher_patience() {
    unsigned seconds = 300;
    if (const char* asked = std::getenv("ATELIER_LAUNCHER_PATIENCE")) std::from_chars(asked, asked + std::strlen(asked), seconds);
    return std::chrono::seconds(seconds);
}

}  // namespace atelier::comm
