#pragma once

#include "comm/communicator.hpp"
#include "io/safetensors.hpp"
#include "nn/block_window.hpp"
#include "nn/checkpoint_weights.hpp"
#include "nn/frozen.hpp"

// Flat vectors cut over ranks (nn/partition.hpp; ZeRO: Rajbhandari et al., arXiv 1910.02054).
namespace atelier::nn {

/// Reads a rank's shard [shard_size] of a checkpoint, to wherever it lies: no other byte of its tensors is touched. `ignorable` and errors as
/// load_weights.
void load_shard(const Partition& partition, int rank, const io::Safetensors& file, const Tensor& shard,
                std::span<const std::string> ignorable = {});

/// Gives a rank's shard, wherever it lies, the mean of checkpoints: fp32 sums in their order, made in host memory piece by piece, so that
/// it has the same bits wherever the shard is and however it is cut. Errors as load_weights.
void load_mean(const Partition& partition, int rank, std::span<const io::Safetensors> files, const Tensor& shard);
/// The same of all numbers, of weights that nobody trains.
void load_mean(const ParameterTable& table, std::span<const io::Safetensors> files, const FrozenWeights& weights);
/// Bytes of host memory that it takes.
std::size_t mean_bytes(const Partition& partition);

/// Weights of which each rank holds its shard, in fp32: blocks are gathered as they come into the window. On a device whose products round, each
/// rank rounds its share and bf16 is gathered. Collective.
class ShardedWeights final : public BlockWindow {
  public:
    /// Takes its memory from the arena. `shard`: numbers that somebody else holds; empty: its own, on `device`. `world` takes spans
    /// of the same memory (comm/on_device.hpp).
    ShardedWeights(const Partition& partition, comm::Communicator& world, const Tensor& shard, Arena& arena, Device device = Device::cpu,
                   ops::ProductPrecision precision = ops::ProductPrecision::fp32);
    ~ShardedWeights() override;
    const Tensor& shard() const { return shard_; }
    Device device() const override { return shard_.device(); }
    /// After the shard changed. Collective.
    void refresh();
    /// Calls `use` with a store of all numbers as they are, in fp32, block by block: this one, or, where it rounds, one with memory of its own.
    /// Collective.
    void with_numbers(const std::function<void(const ParameterStore&)>& use);

  private:
    void start(const Partition::Segment& segment, const Tensor& to) override;
    void finish() override { world_->finish_gather(); }
    void bring_rows(const Tensor& room);
    comm::Communicator* world_;
    Tensor shard_;
};

/// Memory that weights cut over ranks take beside the shard.
Bytes window_bytes(const Partition& partition, Device device, ops::ProductPrecision precision);

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
    Tensor row(int index) override;
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
    ResidentRows resident_;
    int used_ = -1;
};

}  // namespace atelier::nn
