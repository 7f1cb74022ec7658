#include "ops/backend.hpp"

#include <dlfcn.h>

#include <cstdlib>

namespace atelier::ops {
namespace {

const Backend* loaded = nullptr;

std::filesystem::path library_path() {
    if (const char* named = std::getenv("ATELIER_CUDA_BACKEND"); named != nullptr && *named != '\0') return named;
    return std::filesystem::read_symlink("/proc/self/exe").parent_path().parent_path() / "lib" / "libatelier_cuda.so";
}

}  // namespace

const Backend& load_backend() {
    if (loaded != nullptr) return *loaded;
    const std::filesystem::path path = library_path();
    ATELIER_CHECK_USAGE(std::filesystem::exists(path), "device = \"cuda\" needs {}: this build has no CUDA backend (see the lines of CMake)",
                        path.string());
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    ATELIER_CHECK_USAGE(library != nullptr, "device = \"cuda\": cannot load {}: {}", path.string(), dlerror());
    const auto entry = reinterpret_cast<BackendEntry>(dlsym(library, "atelier_backend"));
    ATELIER_CHECK_USAGE(entry != nullptr, "{} is no backend of this program", path.string());
    loaded = entry(process());
    set_device_memory(loaded->memory);
#define ATELIER_INSTALL(name) Op<&cpu::name>::on_cuda = loaded->name;
    ATELIER_OPS(ATELIER_INSTALL)
#undef ATELIER_INSTALL
    return *loaded;
}

const Backend& backend() {
    ATELIER_CHECK(loaded != nullptr, "no backend is loaded");
    return *loaded;
}

}  // namespace atelier::ops
