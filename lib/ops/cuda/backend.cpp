#include "ops/backend.hpp"

#include "ops/cuda/context.hpp"
#include "ops/cuda/device_memory.hpp"
#include "ops/cuda/functions.hpp"
#include "ops/cuda/open_device.hpp"
#include "ops/cuda/products.hpp"

namespace atelier::ops::cuda {
namespace {

Backend make_backend() {
    Backend b;
#define ATELIER_FILL(name) b.name = &cuda::name;
    ATELIER_OPS(ATELIER_FILL)
    ATELIER_FILL(set_product_precision)
    ATELIER_FILL(keep_bf16_copy)
    ATELIER_FILL(refresh_bf16_copy)
    ATELIER_FILL(bf16_copy_of)
    ATELIER_FILL(record_graph)
    ATELIER_FILL(launch_graph)
    ATELIER_FILL(release_graph)
    ATELIER_FILL(guide)
    ATELIER_FILL(guide_backward)
    ATELIER_FILL(sampler_step)
    ATELIER_FILL(squared_residuals)
    ATELIER_FILL(residual_gradient)
    ATELIER_FILL(guard_sums)
    ATELIER_FILL(squared_differences)
    ATELIER_FILL(difference_gradient)
    ATELIER_FILL(adamw)
    ATELIER_FILL(sum_of_squares)
    ATELIER_FILL(convolution)
    ATELIER_FILL(convolution_backward)
    ATELIER_FILL(compute_stream)
    ATELIER_FILL(round_to)
#undef ATELIER_FILL
    b.memory = &memory();
    return b;
}

}  // namespace
}  // namespace atelier::ops::cuda

extern "C" __attribute__((visibility("default"))) const atelier::ops::Backend* atelier_backend(const atelier::Process& caller) {
    atelier::process() = caller;
    static const char* name = atelier::ops::cuda::open_device();
    static atelier::ops::Backend backend = atelier::ops::cuda::make_backend();
    backend.device_name = name;
    return &backend;
}
