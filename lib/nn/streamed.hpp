#pragma once

#include "core/device.hpp"
#include "nn/parameters.hpp"

namespace atelier::nn {

/// Weights in host memory that a device works on block by block: a block is brought when it is acquired, and the next one, in the
/// direction that the last two went, ahead of use; behind the last comes the first. Rows of no block are there all the time.
class StreamedWeights final : public Residence {
  public:
    /// Takes two blocks of the device's memory, and that of the rows of no block, from the arena. `host`: all numbers [flat_size] in
    /// host memory, which must outlive this; they are pinned, where the arena is a real one, by refresh().
    StreamedWeights(const ParameterTable& table, const Tensor& host, Arena& arena);
    ~StreamedWeights() override;
    StreamedWeights(const StreamedWeights&) = delete;
    StreamedWeights& operator=(const StreamedWeights&) = delete;
    /// After the numbers were written: nothing that was brought before holds.
    void refresh();
    Device device() const override { return Device::cuda; }
    float* row(int index) override;
    void acquire(int block) override;
    void release(int block) override;

  private:
    /// A run of rows of one block, or of none.
    struct Segment {
        int block = -1;
        std::int64_t begin = 0, end = 0;  ///< of the flat vector
    };
    struct Slot {
        Tensor memory;
        int block = -1;
    };
    const Segment& of_block(int block) const;
    void upload(const Segment& segment, const Tensor& to);
    Slot* find(int block);

    const ParameterTable* table_;
    Tensor host_;
    std::vector<Segment> segments_;
    std::vector<Tensor> resident_;  ///< by segment; empty for blocks
    Slot slots_[2];
    bool is_pinned_ = false;
    int used_ = -1, previous_ = -1;  ///< blocks
};

}  // namespace atelier::nn
