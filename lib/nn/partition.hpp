#pragma once

#include <vector>

#include "core/arena.hpp"
#include "nn/parameters.hpp"

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

/// Memory of the rows that are in no block: all ranks' shares of each such segment.
class ResidentRows {
  public:
    ResidentRows(const Partition& partition, Arena& arena, Device device);
    /// By segment; empty for blocks.
    const std::vector<Tensor>& memory() const { return memory_; }
    /// Throws Error(internal) for a row of a block.
    Tensor row(int index) const;

  private:
    const Partition* partition_;
    std::vector<Tensor> memory_;
};

}  // namespace atelier::nn
