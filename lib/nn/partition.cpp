#include "nn/partition.hpp"

#include <algorithm>

namespace atelier::nn {
namespace {

std::int64_t end_of(const ParameterTable& table, int row) {
    return row + 1 < table.size() ? table.offset(row + 1) : table.flat_size();
}

}  // namespace

Partition::Partition(const ParameterTable& table, int ranks) : table_(&table), ranks_(ranks) {
    for (int row = 0; row < table.size(); ++row) {
        const int block = table.spec(row).block;
        if (segments_.empty() || segments_.back().block != block) segments_.push_back({block, table.offset(row), 0, 0, 0});
        segments_.back().end = end_of(table, row);
    }
    by_block_.resize(static_cast<std::size_t>(table.blocks()));
    for (std::size_t i = 0; i < segments_.size(); ++i) {
        Segment& s = segments_[i];
        constexpr std::int64_t unit = ParameterTable::alignment;
        s.share = ((s.end - s.begin + ranks - 1) / ranks + unit - 1) / unit * unit;
        s.local = shard_size_;
        shard_size_ += s.share;
        largest_ = std::max(largest_, s.share * ranks);
        if (s.block < 0) continue;
        by_block_[static_cast<std::size_t>(s.block)] = static_cast<int>(i);
        largest_block_ = std::max(largest_block_, s.share * ranks);
    }
}

std::vector<Partition::Piece> Partition::pieces(int rank) const {
    std::vector<Piece> result;
    for (const Segment& s : segments_) {
        const std::int64_t begin = s.begin + rank * s.share, end = std::min(s.end, begin + s.share);
        for (int row = 0; row < table_->size(); ++row) {
            const std::int64_t at = table_->offset(row), stop = at + table_->spec(row).shape.elements();
            const std::int64_t from = std::max(begin, at), to = std::min(end, stop);
            if (from < to) result.push_back({row, from - at, from, s.local + (from - begin), to - from});
        }
    }
    return result;
}

ResidentRows::ResidentRows(const Partition& partition, Arena& arena, Device device) : partition_(&partition) {
    for (const Partition::Segment& s : partition.segments())
        memory_.push_back(s.block < 0 ? arena.take_f32({s.share * partition.ranks()}, device) : Tensor());
}

Tensor ResidentRows::row(int index) const {
    const std::int64_t at = partition_->table().offset(index);
    const Shape& shape = partition_->table().spec(index).shape;
    for (std::size_t i = 0; i < memory_.size(); ++i) {
        const Partition::Segment& s = partition_->segments()[i];
        if (s.block < 0 && at >= s.begin && at < s.end) return memory_[i].slice(at - s.begin, at - s.begin + shape.elements()).reshaped(shape);
    }
    ATELIER_FAIL(ErrorKind::internal, "row {} is in no segment that is there all the time", index);
}

}  // namespace atelier::nn
