#pragma once

#include <utility>

#include "ops/backend.hpp"

namespace atelier::ops {

/// Work that comes again and again with the same shapes and addresses. On a device it runs as it is the first time (memory is taken,
/// algorithms are chosen), is recorded the second time, and is launched as one graph from then on: no gaps between its kernels. On the
/// CPU it runs as it is. The work must not touch host memory.
class Repeated {
  public:
    Repeated() = default;
    Repeated(Repeated&& other) noexcept : runs_(std::exchange(other.runs_, 0)), graph_(std::exchange(other.graph_, nullptr)) {}
    Repeated& operator=(Repeated&& other) noexcept {
        std::swap(runs_, other.runs_);
        std::swap(graph_, other.graph_);
        return *this;
    }
    ~Repeated() { forget(); }

    template <typename Work>
    void run(Work&& work) {
        if (current_device() == Device::cpu || runs_++ == 0) return work();
        const Backend& device = backend();
        if (graph_ != nullptr && device.launch_graph(graph_)) return;
        forget_graph();
        graph_ = device.record_graph(work);
        ATELIER_CHECK(device.launch_graph(graph_), "a graph cannot be launched that was just recorded");
    }
    /// The next work is another.
    void forget() {
        runs_ = 0;
        forget_graph();
    }

  private:
    void forget_graph() {
        if (graph_ != nullptr) backend().release_graph(std::exchange(graph_, nullptr));
    }
    int runs_ = 0;
    void* graph_ = nullptr;
};

}  // namespace atelier::ops
