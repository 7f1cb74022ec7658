#pragma once

#include <span>
#include <string>
#include <vector>

#include "core/device.hpp"
#include "io/safetensors.hpp"
#include "nn/block_window.hpp"

namespace atelier::nn {

/// Weights whose blocks are in pinned host memory, as a device's products take them, and come to it block by block; behind the last comes the first.
/// Everything else is on the device.
class StreamedWeights final : public BlockWindow {
  public:
    /// `partition`: on one rank. Takes its memory of both kinds from the arena. Blocks from `blocks` on are never asked for, nor read.
    StreamedWeights(const Partition& partition, int blocks, Arena& arena, ops::ProductPrecision precision);
    ~StreamedWeights() override;
    /// As load_weights(). Pins the host memory.
    void load(const io::Safetensors& file, std::span<const std::string> ignorable = {});
    Device device() const override { return Device::cuda; }

  private:
    void start(const Partition::Segment& segment, const Tensor& to) override;
    void finish() override { device_memory().compute_after_uploads(); }
    Tensor host_;                         ///< the blocks, one behind the other
    std::vector<std::int64_t> block_at_;  ///< where each begins
    bool is_pinned_ = false;
};

}  // namespace atelier::nn
