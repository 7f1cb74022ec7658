#include "nn/streamed.hpp"

#include <utility>

namespace atelier::nn {

StreamedWeights::StreamedWeights(const Partition& partition, const Tensor& host, int blocks, Arena& arena)
    : BlockWindow(partition, blocks, AfterLast::first, arena, Device::cuda, false), host_(host) {
    ATELIER_CHECK(partition.ranks() == 1, "weights that are cut over {} ranks are not in one rank's memory", partition.ranks());
}

StreamedWeights::~StreamedWeights() {
    if (!is_pinned_) return;
    device_memory().synchronise();
    device_memory().unpin(host_.raw());
}

void StreamedWeights::refresh() {
    if (!std::exchange(is_pinned_, true)) device_memory().pin(host_.raw(), host_.bytes());
    bring_resident();
}

void StreamedWeights::start(const Partition::Segment& s, const Tensor& to) {
    // What was computed with the memory's former numbers comes first.
    device_memory().uploads_after_compute();
    device_memory().start_upload(to.raw(), host_.f32() + s.begin, static_cast<std::size_t>(s.end - s.begin) * sizeof(float));
}

}  // namespace atelier::nn
