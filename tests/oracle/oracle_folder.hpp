#pragma once

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

namespace atelier::testing {

/// Folder with transformer/, pipeline/ and parts/: ATELIER_ORACLE_DIR, else the one in the tree.
inline std::filesystem::path oracle_folder() {
    const char* other = std::getenv("ATELIER_ORACLE_DIR");
    return other && *other ? std::filesystem::path(other)
                           : std::filesystem::path(ATELIER_SOURCE_DIR) / "tests/oracle/data";
}

/// The folders of oracle_folder()/`part` whose name begins with `prefix`, sorted.
inline std::vector<std::filesystem::path> oracle_cases(const std::string& part,
                                                       const std::string& prefix) {
    std::vector<std::filesystem::path> found;
    for (const auto& entry : std::filesystem::directory_iterator(oracle_folder() / part)) {
        if (entry.is_directory() && entry.path().filename().string().starts_with(prefix))
            found.push_back(entry.path());
    }
    std::sort(found.begin(), found.end());
    return found;
}

}  // namespace atelier::testing
