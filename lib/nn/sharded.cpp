#include "nn/sharded.hpp"

#include <algorithm>
#include <cmath>

#include "core/device.hpp"
#include "core/parallel.hpp"
#include "ops/activation.hpp"

namespace atelier::nn {
namespace {

std::int64_t end_of(const ParameterTable& table, int row) {
    return row + 1 < table.size() ? table.offset(row + 1) : table.flat_size();
}

std::span<float> numbers(const Tensor& t, std::int64_t first, std::int64_t count) { return {t.f32() + first, static_cast<std::size_t>(count)}; }

/// Memory of the segments that are no blocks, all ranks' shares of each.
std::vector<Tensor> take_resident(const Partition& partition, Arena& arena, Device device) {
    std::vector<Tensor> resident;
    for (const Partition::Segment& s : partition.segments())
        resident.push_back(s.block < 0 ? arena.take_f32({s.share * partition.ranks()}, device) : Tensor());
    return resident;
}

/// A row that is there all the time.
float* resident_row(const Partition& partition, const std::vector<Tensor>& resident, int row) {
    const std::int64_t at = partition.table().offset(row);
    for (std::size_t i = 0; i < resident.size(); ++i) {
        const Partition::Segment& s = partition.segments()[i];
        if (at >= s.begin && at < s.end) return resident[i].f32() + (at - s.begin);
    }
    ATELIER_FAIL(ErrorKind::internal, "row {} is in no segment", row);
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

void load_shard(const Partition& partition, int rank, const io::Safetensors& file, const Tensor& shard) {
    check_weights(partition.table(), file);
    const auto pieces = partition.pieces(rank);
    const NumbersLoader loader(file, shard.device());
    // To a device one piece goes after another.
    const auto count = static_cast<std::int64_t>(pieces.size());
    parallel_for(count, shard.device() == Device::cpu ? 1 : count, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const Partition::Piece& p = pieces[static_cast<std::size_t>(i)];
            loader.load(file.at(partition.table().spec(p.row).name), p.first, shard.slice(p.local, p.local + p.count));
        }
    });
}

ShardedWeights::ShardedWeights(const Partition& partition, comm::Communicator& world, const Tensor& shard, Arena& arena, Device device)
    : partition_(&partition), world_(&world), shard_(shard), resident_(take_resident(partition, arena, device)) {
    if (shard.empty()) shard_ = arena.take_f32({partition.shard_size()}, device);
    for (Slot& slot : slots_) slot.memory = arena.take_f32({partition.largest_block()}, device);
}

ShardedWeights::~ShardedWeights() {
    // A gather that nobody waited for still writes into this memory. If the transport failed, its error is on its way already.
    try {
        finish();
    } catch (const Error&) {
    }
}

void ShardedWeights::gather(const Partition::Segment& s, float* to) {
    world_->start_gather_shares(numbers(shard_, s.local, s.share), {to, static_cast<std::size_t>(s.share * partition_->ranks())});
}

void ShardedWeights::finish() {
    if (pending_ < 0) return;
    pending_ = -1;
    world_->finish_gather();
}

void ShardedWeights::refresh() {
    finish();
    for (Slot& slot : slots_) slot.block = -1;
    used_ = previous_ = -1;
    for (std::size_t i = 0; i < resident_.size(); ++i) {
        if (resident_[i].empty()) continue;
        gather(partition_->segments()[i], resident_[i].f32());
        world_->finish_gather();
    }
}

ShardedWeights::Slot* ShardedWeights::find(int block) {
    for (Slot& slot : slots_)
        if (slot.block == block) return &slot;
    return nullptr;
}

void ShardedWeights::acquire(int block) {
    ATELIER_CHECK(used_ < 0, "block {} was acquired while block {} was in use", block, used_);
    finish();
    used_ = block;
    Slot* slot = find(block);
    if (slot == nullptr) {
        // The block used last is nearer to what comes next only where the direction turns; it is overwritten last.
        slot = slots_[0].block == previous_ ? &slots_[1] : &slots_[0];
        slot->block = block;
        gather(partition_->of_block(block), slot->memory.f32());
        world_->finish_gather();
    }
    const int last = partition_->table().blocks() - 1;
    const int next = block == 0 ? 1 : block == last ? last - 1 : block + (block > previous_ ? 1 : -1);
    previous_ = block;
    if (next < 0 || next > last || find(next) != nullptr) return;
    Slot& other = slot == &slots_[0] ? slots_[1] : slots_[0];
    other.block = pending_ = next;
    gather(partition_->of_block(next), other.memory.f32());
}

void ShardedWeights::release(int block) {
    ATELIER_CHECK(used_ == block, "block {} was released, block {} is in use", block, used_);
    used_ = -1;
}

float* ShardedWeights::row(int index) {
    const int block = partition_->table().spec(index).block;
    if (block < 0) return resident_row(*partition_, resident_, index);
    ATELIER_CHECK(block == used_, "{} of block {} is wanted, block {} is in use", partition_->table().spec(index).name, block, used_);
    return find(block)->memory.f32() + (partition_->table().offset(index) - partition_->of_block(block).begin);
}

ShardedGradients::ShardedGradients(const Partition& partition, comm::Communicator& world, Arena& arena, Device device)
    : partition_(&partition), world_(&world), resident_(take_resident(partition, arena, device)) {
    shard_ = arena.take_f32({partition.shard_size()}, device);
    slots_[0] = arena.take_f32({partition.largest_block()}, device);
    if (device != Device::cpu) slots_[1] = arena.take_f32({partition.largest_block()}, device);
    share_ = arena.take_f32({partition.largest_segment() / partition.ranks()}, device);
}

void ShardedGradients::zero() {
    clear(shard_);
    for (const Tensor& t : resident_)
        if (!t.empty()) clear(t);
}

void ShardedGradients::start_share(const Partition::Segment& s, const Tensor& all) {
    finish_share();
    pending_ = &s;
    world_->start_sum_shares(numbers(all, 0, s.share * partition_->ranks()), numbers(share_, 0, s.share));
}

void ShardedGradients::finish_share() {
    if (pending_ == nullptr) return;
    const DeviceScope scope(device());
    world_->finish_sum_shares();
    ops::add(share_.f32(), shard_.f32() + pending_->local, pending_->share);
    pending_ = nullptr;
}

void ShardedGradients::reduce() {
    finish_share();
    for (std::size_t i = 0; i < resident_.size(); ++i) {
        if (resident_[i].empty()) continue;
        start_share(partition_->segments()[i], resident_[i]);
        finish_share();
        clear(resident_[i]);
    }
}

void ShardedGradients::acquire(int block) {
    ATELIER_CHECK(used_ < 0, "gradients of block {} were acquired while those of block {} were in use", block, used_);
    used_ = block;
    clear(slots_[turn_]);
}

void ShardedGradients::release(int block) {
    ATELIER_CHECK(used_ == block, "gradients of block {} were released, those of block {} are in use", block, used_);
    start_share(partition_->of_block(block), slots_[turn_]);
    if (slots_[1].empty())
        finish_share();
    else
        turn_ ^= 1;
    used_ = -1;
}

float* ShardedGradients::row(int index) {
    const int block = partition_->table().spec(index).block;
    if (block < 0) return resident_row(*partition_, resident_, index);
    ATELIER_CHECK(block == used_, "the gradient of {} of block {} is wanted, block {} is in use", partition_->table().spec(index).name, block,
                  used_);
    return slots_[turn_].f32() + (partition_->table().offset(index) - partition_->of_block(block).begin);
}

}  // namespace atelier::nn
