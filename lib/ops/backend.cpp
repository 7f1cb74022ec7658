#include "ops/backend.hpp"

#include "core/library.hpp"
#include "ops/cuda/workspaces.hpp"

namespace atelier::ops {
namespace {

const Backend* loaded = nullptr;

// Plans of what runs on a device need no device.
[[maybe_unused]] const bool planned = [] {
    Op<&cpu::attention_workspace>::on_cuda = &cuda::attention_workspace;
    Op<&cpu::attention_backward_workspace>::on_cuda = &cuda::attention_backward_workspace;
    Op<&cpu::qk_norm_rope_workspace>::on_cuda = &cuda::qk_norm_rope_workspace;
    return true;
}();

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

double* device_sum() {
    static double* const taken = static_cast<double*>(device_memory().allocate(sizeof(double)));
    return taken;
}

}  // namespace atelier::ops
