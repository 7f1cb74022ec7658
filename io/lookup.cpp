#include "io/lookup.hpp"

#include <sys/stat.h>

#include <cerrno>
#include <cstring>

#include "core/open_failure.hpp"

namespace atelier::io {

bool is_file(const std::filesystem::path& path) {
    struct stat info {};
    if (stat(path.c_str(), &info) == 0) return S_ISREG(info.st_mode);
    const int reason = errno;
    ATELIER_CHECK_IO(kind_of_failed_open(reason) == ErrorKind::input, "cannot look at {}: {}", path.string(), std::strerror(reason));
    return false;
}

bool stays_inside(const std::filesystem::path& name) {
    return !name.empty() && name.is_relative() && *name.lexically_normal().begin() != "..";
}

}  // namespace atelier::io
