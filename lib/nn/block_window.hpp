#pragma once

#include <optional>

#include "core/arena.hpp"
#include "nn/device_rows.hpp"
#include "nn/partition.hpp"

namespace atelier::nn {

/// Weights of which two blocks are in memory at a time: a block comes when it is acquired, and the next one, in the direction that the
/// last two different ones went, ahead of use. Rows of no block are there all the time. Where it rounds, blocks come in bf16, and of theirs what is no product's
/// operand is there all the time too, in fp32.
class BlockWindow : public Residence {
  public:
    /// What is expected after the last block: the first one (passes forward alone), or the one before (forward, then backward).
    enum class AfterLast { first, before };
    BlockWindow(const BlockWindow&) = delete;
    BlockWindow& operator=(const BlockWindow&) = delete;
    const Partition& partition() const { return *partition_; }
    /// Whether what products take is bf16 here.
    bool rounds() const { return dtype() == DType::bf16; }
    Tensor row(int index) final;
    Tensor numbers(int index) final;
    void acquire(int block) final;
    void release(int block) final;

  protected:
    /// Takes two blocks of memory of `dtype` from the arena. Blocks from `blocks` on are never asked for.
    BlockWindow(const Partition& partition, int blocks, AfterLast after_last, Arena& arena, Device device, DType dtype);
    /// Of blocks.
    DType dtype() const { return slots_[0].memory.dtype(); }
    /// Whether the row comes with its block.
    bool comes(int row) const;
    /// Waits for what is under way.
    void settle();
    /// After the numbers changed: nothing that came before holds. Gives memory that may be used until the next block is acquired.
    Tensor forget();
    // What is there all the time, in one of them, whose memory a subclass takes.
    void hold_rows(Arena& arena, Device device);
    std::optional<DeviceRows> rows_;
    std::optional<ResidentRows> resident_;

  private:
    /// Brings all numbers of a segment; finish() waits for them, before the next start().
    virtual void start(const Partition::Segment& segment, const Tensor& to) = 0;
    virtual void finish() = 0;

    struct Slot {
        Tensor memory;
        int block = -1;
    };
    Slot* find(int block);
    void check_use(int index) const;
    int expected_after(int block) const;
    const Partition* partition_;
    int blocks_;
    AfterLast after_last_;
    Slot slots_[2];
    bool is_under_way_ = false;
    int used_ = -1, previous_ = -1;  ///< blocks
};

}  // namespace atelier::nn
