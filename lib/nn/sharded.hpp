#pragma once

#include <span>
#include <vector>

#include "comm/communicator.hpp"
#include "io/safetensors.hpp"
#include "nn/checkpoint_weights.hpp"
#include "nn/parameters.hpp"

// Flat vectors cut over ranks (ZeRO: Rajbhandari et al., arXiv 1910.02054).
namespace atelier::nn {

/// How a table's flat vector is cut: every block, and every run of rows between blocks, into one share a rank, all shares of a segment
/// of one size (the last ones padded with zeros). One rank's shares one behind another are its shard; on one rank that is the flat
/// vector itself.
class Partition {
  public:
    struct Segment {
        int block = -1;             ///< -1: rows that are there all the time
        std::int64_t begin = 0, end = 0;  ///< of the flat vector
        std::int64_t share = 0;     ///< numbers of a rank
        std::int64_t local = 0;     ///< where a rank's share begins in its shard
    };
    /// A run of one row in a rank's shard.
    struct Piece {
        int row = 0;
        std::int64_t first = 0;   ///< element of the row
        std::int64_t global = 0;  ///< place in the flat vector
        std::int64_t local = 0;   ///< place in the shard
        std::int64_t count = 0;
    };
    Partition(const ParameterTable& table, int ranks);
    const ParameterTable& table() const { return *table_; }
    int ranks() const { return ranks_; }
    const std::vector<Segment>& segments() const { return segments_; }
    const Segment& of_block(int block) const { return segments_[static_cast<std::size_t>(by_block_[static_cast<std::size_t>(block)])]; }
    std::int64_t shard_size() const { return shard_size_; }
    /// Numbers of all ranks' shares of the largest segment; of the largest block.
    std::int64_t largest_segment() const { return largest_; }
    std::int64_t largest_block() const { return largest_block_; }
    /// Rows in a rank's shard, rising; padding is in none.
    std::vector<Piece> pieces(int rank) const;

  private:
    const ParameterTable* table_;
    int ranks_;
    std::vector<Segment> segments_;
    std::vector<int> by_block_;
    std::int64_t shard_size_ = 0, largest_ = 0, largest_block_ = 0;
};

/// Reads a rank's shard [shard_size] of a checkpoint, to wherever it lies: no other byte of its tensors is touched. Errors as
/// load_weights.
void load_shard(const Partition& partition, int rank, const io::Safetensors& file, const Tensor& shard);

/// Weights of which each rank holds its shard: blocks are gathered when they are acquired, and the next one, in the direction that the
/// last two went, ahead of use. Two blocks are in memory at a time.
class ShardedWeights final : public Residence {
  public:
    /// Takes its memory from the arena. `shard`: numbers that somebody else holds; empty: its own, on `device`. `world` takes spans
    /// of the same memory (comm/on_device.hpp).
    ShardedWeights(const Partition& partition, comm::Communicator& world, const Tensor& shard, Arena& arena, Device device = Device::cpu);
    ~ShardedWeights() override;
    ShardedWeights(const ShardedWeights&) = delete;
    ShardedWeights& operator=(const ShardedWeights&) = delete;
    const Tensor& shard() const { return shard_; }
    Device device() const override { return shard_.device(); }
    const Partition& partition() const { return *partition_; }
    /// After the shard changed: gathers what is there all the time. Collective.
    void refresh();
    float* row(int index) override;
    void acquire(int block) override;
    void release(int block) override;

  private:
    struct Slot {
        Tensor memory;
        int block = -1;
    };
    void gather(const Partition::Segment& segment, float* to);
    void finish();
    Slot* find(int block);
    const Partition* partition_;
    comm::Communicator* world_;
    Tensor shard_;
    std::vector<Tensor> resident_;  ///< by segment; empty for blocks
    Slot slots_[2];
    int used_ = -1, previous_ = -1, pending_ = -1;  ///< blocks
};

/// Gradients of which each rank keeps its shard: a block's are summed over the ranks and cut when the block is released, so that one
/// block's are in memory at a time; on a device two, since the sum goes on beside the next block's computation.
class ShardedGradients final : public Residence {
  public:
    ShardedGradients(const Partition& partition, comm::Communicator& world, Arena& arena, Device device = Device::cpu);
    const Tensor& shard() const { return shard_; }
    Device device() const override { return shard_.device(); }
    void zero();
    /// Before the shard is read: what is there all the time is summed too. Collective.
    void reduce();
    float* row(int index) override;
    void acquire(int block) override;
    void release(int block) override;

  private:
    void start_share(const Partition::Segment& segment, const Tensor& all);
    void finish_share();
    const Partition* partition_;
    comm::Communicator* world_;
    Tensor shard_, slots_[2], share_;
    int turn_ = 0;                                ///< the slot of the block in use
    const Partition::Segment* pending_ = nullptr;  ///< whose sum is under way, into share_
    std::vector<Tensor> resident_;
    int used_ = -1;
};

}  // namespace atelier::nn
