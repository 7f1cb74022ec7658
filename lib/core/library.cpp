#include "core/library.hpp"

#include <dlfcn.h>

#include <cstdlib>

#include "core/error.hpp"

namespace atelier {

void* load_entry(const char* wanted_by, const char* named_by, const char* file, const char* entry) {
    const char* named = std::getenv(named_by);
    const std::filesystem::path path =
        named != nullptr && *named != '\0'
            ? std::filesystem::path(named)
            : std::filesystem::read_symlink("/proc/self/exe").parent_path().parent_path() / "lib" / file;
    ATELIER_CHECK_USAGE(std::filesystem::exists(path), "{} needs {}: this build was made without it (see the lines of CMake)", wanted_by,
                        path.string());
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    ATELIER_CHECK_USAGE(library != nullptr, "{}: cannot load {}: {}", wanted_by, path.string(), dlerror());
    void* found = dlsym(library, entry);
    ATELIER_CHECK_USAGE(found != nullptr, "{}: {} is no library of this program", wanted_by, path.string());
    return found;
}

}  // namespace atelier
