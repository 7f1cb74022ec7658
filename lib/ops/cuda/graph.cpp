// Work recorded as a CUDA graph.
#include <memory>

#include "core/error.hpp"
#include "ops/cuda/context.hpp"
#include "ops/cuda/device_memory.hpp"
#include "ops/cuda/functions.hpp"

namespace atelier::ops::cuda {
namespace {

struct Graph {
    cudaGraphExec_t executable = nullptr;
    ScratchAddresses scratch;  ///< what its operations were given
};

}  // namespace

void* record_graph(const std::function<void()>& work) {
    check(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeThreadLocal), "beginning to record a graph");
    cudaGraph_t recorded = nullptr;
    try {
        work();
    } catch (...) {
        cudaStreamEndCapture(stream(), &recorded);
        if (recorded != nullptr) cudaGraphDestroy(recorded);
        throw;
    }
    check(cudaStreamEndCapture(stream(), &recorded), "recording a graph");
    auto made = std::make_unique<Graph>();
    made->scratch = scratch_addresses();
    const cudaError_t status = cudaGraphInstantiate(&made->executable, recorded, 0);
    cudaGraphDestroy(recorded);
    check(status, "making a graph");
    return made.release();
}

bool launch_graph(void* graph) {
    const auto* g = static_cast<const Graph*>(graph);
    if (g->scratch != scratch_addresses()) return false;
    check(cudaGraphLaunch(g->executable, stream()), "launching a graph");
    return true;
}

void release_graph(void* graph) {
    const std::unique_ptr<Graph> g(static_cast<Graph*>(graph));
    try {
        memory().synchronise();
    } catch (const Error&) {  // is on its way already: this is called by destructors
    }
    cudaGraphExecDestroy(g->executable);
}

}  // namespace atelier::ops::cuda
