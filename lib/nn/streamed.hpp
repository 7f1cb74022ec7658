#pragma once

#include "core/device.hpp"
#include "nn/block_window.hpp"

namespace atelier::nn {

/// Weights in pinned host memory that a device works on block by block; behind the last comes the first.
class StreamedWeights final : public BlockWindow {
  public:
    /// `partition`: on one rank. Takes its memory of the device from the arena. `host`: all numbers [flat_size] in host memory, which must outlive this;
    /// refresh() pins them. Blocks from `blocks` on are never asked for.
    StreamedWeights(const Partition& partition, const Tensor& host, int blocks, Arena& arena);
    ~StreamedWeights() override;
    /// After the numbers were written.
    void refresh();
    Device device() const override { return Device::cuda; }

  private:
    void start(const Partition::Segment& segment, const Tensor& to) override;
    void finish() override { device_memory().compute_after_uploads(); }
    Tensor host_;
    bool is_pinned_ = false;
};

}  // namespace atelier::nn
