#include "io/lookup.hpp"

#include <fmt/format.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>

#include "core/open_failure.hpp"
#include "io/publish.hpp"

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

std::string file_name_of(std::string_view text) {
    constexpr std::size_t longest = 200;  // file systems take 255 bytes; an ending and a number may follow
    const bool is_dots = text == "." || text == "..";
    std::string name;
    for (const char c : text) {
        const bool is_kept = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-' || (c == '.' && !is_dots);
        name += is_kept ? std::string(1, c) : fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
    if (name.size() <= longest) return name;
    return name.substr(0, longest - 33) + "-" + digest_bytes(text.data(), text.size());
}

}  // namespace atelier::io
