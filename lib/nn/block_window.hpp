#pragma once

#include "core/arena.hpp"
#include "nn/partition.hpp"

namespace atelier::nn {

/// Weights of which two blocks are in memory at a time: a block comes when it is acquired, and the next one, in the direction that the
/// last two went, ahead of use. Rows of no block are there all the time.
class BlockWindow : public Residence {
  public:
    /// What is expected after the last block: the first one (passes forward alone), or the one before (forward, then backward).
    enum class AfterLast { first, before };
    BlockWindow(const BlockWindow&) = delete;
    BlockWindow& operator=(const BlockWindow&) = delete;
    const Partition& partition() const { return *partition_; }
    float* row(int index) final;
    void acquire(int block) final;
    void release(int block) final;

  protected:
    /// Takes two blocks of memory, and that of the rows of no block, from the arena. Blocks from `blocks` on are never asked for.
    BlockWindow(const Partition& partition, int blocks, AfterLast after_last, Arena& arena, Device device);
    /// Waits for what is under way.
    void settle();
    /// After the numbers changed: brings what is there all the time; nothing that came before holds.
    void bring_resident();

  private:
    /// Brings all numbers of a segment; finish() waits for them, before the next start().
    virtual void start(const Partition::Segment& segment, const Tensor& to) = 0;
    virtual void finish() = 0;

    struct Slot {
        Tensor memory;
        int block = -1;
    };
    Slot* find(int block);
    int expected_after(int block) const;
    const Partition* partition_;
    int blocks_;
    AfterLast after_last_;
    ResidentRows resident_;
    Slot slots_[2];
    bool is_under_way_ = false;
    int used_ = -1, previous_ = -1;  ///< blocks
};

}  // namespace atelier::nn
