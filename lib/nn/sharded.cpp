#include "nn/sharded.hpp"

#include "core/device.hpp"
#include "core/numbers.hpp"
#include "core/parallel.hpp"
#include "ops/activation.hpp"

namespace atelier::nn {
void load_shard(const Partition& partition, int rank, const io::Safetensors& file, const Tensor& shard, std::span<const std::string> ignorable) {
    check_weights(partition.table(), file, ignorable);
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

namespace {

// Numbers of the mean that are made at a time: 16 MiB, and as much of a checkpoint.
constexpr std::int64_t mean_numbers = 1 << 22;

}  // namespace

std::size_t mean_bytes(const Partition& partition) {
    return 2 * sizeof(float) * static_cast<std::size_t>(std::min(mean_numbers, partition.shard_size()));
}

void load_mean(const Partition& partition, int rank, std::span<const io::Safetensors> files, const Tensor& shard) {
    std::vector<NumbersLoader> loaders;
    for (const io::Safetensors& file : files) {
        check_weights(partition.table(), file);
        loaders.emplace_back(file, Device::cpu);
    }
    const std::int64_t room = std::min(mean_numbers, partition.shard_size());
    const Numbers mean(room), one(room);
    const float share = 1.0f / static_cast<float>(files.size());
    for (const Partition::Piece& p : partition.pieces(rank))
        for (std::int64_t at = 0; at < p.count; at += room) {
            const std::int64_t count = std::min(room, p.count - at);
            for (std::size_t f = 0; f < files.size(); ++f) {
                loaders[f].load(files[f].at(partition.table().spec(p.row).name), p.first + at, one.tensor().slice(0, count));
                parallel_for(count, 1 << 15, [&](std::int64_t begin, std::int64_t end) {
                    for (std::int64_t i = begin; i < end; ++i) mean.data()[i] = (f == 0 ? 0.0f : mean.data()[i]) + share * one.data()[i];
                });
            }
            transfer(mean.tensor().slice(0, count), shard.slice(p.local + at, p.local + at + count));
        }
}

ShardedWeights::ShardedWeights(const Partition& partition, comm::Communicator& world, const Tensor& shard, Arena& arena, Device device)
    : BlockWindow(partition, partition.table().blocks(), AfterLast::before, arena, device), world_(&world), shard_(shard) {
    if (shard.empty()) shard_ = arena.take_f32({partition.shard_size()}, device);
}

ShardedWeights::~ShardedWeights() {
    // A gather that nobody waited for still writes into this memory. If the transport failed, its error is on its way already.
    try {
        settle();
    } catch (const Error&) {
    }
}

void ShardedWeights::start(const Partition::Segment& s, const Tensor& to) {
    world_->start_gather_shares(numbers(shard_, s.local, s.share), numbers(to, 0, s.share * partition().ranks()));
}

ShardedGradients::ShardedGradients(const Partition& partition, comm::Communicator& world, Arena& arena, Device device)
    : partition_(&partition), world_(&world), resident_(partition, arena, device) {
    shard_ = arena.take_f32({partition.shard_size()}, device);
    slots_[0] = arena.take_f32({partition.largest_block()}, device);
    if (device != Device::cpu) slots_[1] = arena.take_f32({partition.largest_block()}, device);
    share_ = arena.take_f32({partition.largest_segment() / partition.ranks()}, device);
}

void ShardedGradients::zero() {
    clear(shard_);
    for (const Tensor& t : resident_.memory())
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
    for (std::size_t i = 0; i < resident_.memory().size(); ++i) {
        const Tensor& memory = resident_.memory()[i];
        if (memory.empty()) continue;
        start_share(partition_->segments()[i], memory);
        finish_share();
        clear(memory);
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
    if (block < 0) return resident_.row(index);
    ATELIER_CHECK(block == used_, "the gradient of {} of block {} is wanted, block {} is in use", partition_->table().spec(index).name, block,
                  used_);
    return slots_[turn_].f32() + (partition_->table().offset(index) - partition_->of_block(block).begin);
}

}  // namespace atelier::nn
