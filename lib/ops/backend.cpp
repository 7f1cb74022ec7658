#include "ops/backend.hpp"

#include "core/library.hpp"

namespace atelier::ops {
namespace {

const Backend* loaded = nullptr;

}  // namespace

const Backend& load_backend() {
    if (loaded != nullptr) return *loaded;
    const auto entry = reinterpret_cast<BackendEntry>(
        load_entry("device = \"cuda\"", "ATELIER_CUDA_BACKEND", "libatelier_cuda.so", "atelier_backend"));
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
