#pragma once

#include <cudnn_frontend.h>

#include <map>
#include <memory>
#include <span>
#include <unordered_map>

#include "core/error.hpp"
#include "ops/cuda/context.hpp"

// What the operations that go through cuDNN share.
namespace atelier::ops::cuda {

namespace fe = cudnn_frontend;

inline void check_cudnn(fe::error_t status, const char* what) {
    ATELIER_CHECK(status.is_good(), "cuDNN: {} failed: {}", what, status.get_message());
}

inline cudnnHandle_t cudnn_handle() {
    const cudaStream_t queue = stream();  // a thread's first call chooses its device, which the library's go to
    static const cudnnHandle_t instance = [=] {
        cudnnHandle_t made = nullptr;
        ATELIER_CHECK(cudnnCreate(&made) == CUDNN_STATUS_SUCCESS, "cuDNN does not start on this device");
        ATELIER_CHECK(cudnnSetStream(made, queue) == CUDNN_STATUS_SUCCESS, "cudnnSetStream");
        return made;
    }();
    return instance;
}

/// A graph with its plan: by the library's first choice for the shape (a function of shape, device and version), made once.
struct CudnnPlan {
    std::shared_ptr<fe::graph::Graph> graph = std::make_shared<fe::graph::Graph>();
    std::int64_t workspace = 0;
    void build(const char* what) {
        check_cudnn(graph->build(cudnn_handle(), {fe::HeurMode_t::A}), what);
        check_cudnn(graph->get_workspace_size(workspace), what);
    }
    /// In `room` (device memory) where that is enough for the library, else in scratch memory.
    void run(std::unordered_map<std::int64_t, void*>& tensors, const char* what, std::span<std::byte> room = {}) const {
        const auto needed = static_cast<std::size_t>(workspace);
        check_cudnn(graph->execute(cudnn_handle(), tensors, needed > 0 && needed <= room.size() ? room.data() : library_scratch(needed)), what);
    }
};

}  // namespace atelier::ops::cuda
