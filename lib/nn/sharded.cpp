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

/// Calls put(piece, its first number that is meant, the mean in host memory), piece by piece of a rank's shard.
template <typename Put>
void each_mean(const Partition& partition, int rank, std::span<const io::Safetensors> files, Put put) {
    std::vector<NumbersLoader> loaders;
    for (const io::Safetensors& file : files) {
        check_weights(partition.table(), file);
        loaders.emplace_back(file, Device::cpu);
    }
    const float share = 1.0f / static_cast<float>(files.size());
    const Numbers one(std::min(mean_numbers, partition.shard_size())), mean(one.size());
    for (const Partition::Piece& p : partition.pieces(rank))
        for (std::int64_t at = 0; at < p.count; at += mean_numbers) {
            const std::int64_t count = std::min(mean_numbers, p.count - at);
            for (std::size_t f = 0; f < files.size(); ++f) {
                loaders[f].load(files[f].at(partition.table().spec(p.row).name), p.first + at, one.tensor().slice(0, count));
                parallel_for(count, 1 << 15, [&](std::int64_t begin, std::int64_t end) {
                    for (std::int64_t i = begin; i < end; ++i) mean.data()[i] = (f == 0 ? 0.0f : mean.data()[i]) + share * one.data()[i];
                });
            }
            put(p, at, mean.tensor().slice(0, count));
        }
}

}  // namespace

std::size_t mean_bytes(const Partition& partition) {
    return 2 * sizeof(float) * static_cast<std::size_t>(std::min(mean_numbers, partition.shard_size()));
}

void load_mean(const Partition& partition, int rank, std::span<const io::Safetensors> files, const Tensor& shard) {
    each_mean(partition, rank, files, [&](const Partition::Piece& p, std::int64_t at, const Tensor& mean) {
        transfer(mean, shard.slice(p.local + at, p.local + at + mean.elements()));
    });
}

void load_mean(const ParameterTable& table, std::span<const io::Safetensors> files, const FrozenWeights& weights) {
    each_mean(Partition(table, 1), 0, files, [&](const Partition::Piece& p, std::int64_t at, const Tensor& mean) { weights.put(p.row, p.first + at, mean); });
}

ShardedWeights::ShardedWeights(const Partition& partition, comm::Communicator& world, const Tensor& shard, Arena& arena, Device device,
                               ops::ProductPrecision precision)
    : BlockWindow(partition, partition.table().blocks(), AfterLast::before, arena, device,
                  keeps_bf16(device, precision) ? DType::bf16 : DType::f32),
      world_(&world),
      shard_(shard) {
    if (rounds())
        hold_rows(arena, device);
    else
        resident_.emplace(partition, arena, device);
    if (shard.empty()) shard_ = arena.take_f32({partition.shard_size()}, device);
}

ShardedWeights::~ShardedWeights() {
    // A gather that nobody waited for still writes into this memory. If the transport failed, its error is on its way already.
    try {
        settle();
    } catch (const Error&) {
    }
}

namespace {

/// The first `count` numbers of a memory, cut into one part a rank.
struct Parts {
    Parts(const Tensor& memory, std::int64_t share, int ranks) : all(memory.slice(0, share * ranks)), share(share) {}
    Tensor of(int rank) const { return all.slice(rank * share, (rank + 1) * share); }
    Tensor all;
    std::int64_t share;
};

std::span<std::byte> bytes(const Tensor& t) { return {static_cast<std::byte*>(t.raw()), t.bytes()}; }

void start_gather(comm::Communicator& world, const Tensor& mine, const Tensor& all) { world.start_gather_shares(bytes(mine), bytes(all)); }

}  // namespace

void ShardedWeights::start(const Partition::Segment& s, const Tensor& to) {
    const Parts parts(to, s.share, partition().ranks());
    if (!rounds()) return start_gather(*world_, shard_.slice(s.local, s.local + s.share), parts.all);
    const Tensor mine = parts.of(world_->rank());
    round_there(shard_.f32() + s.local, static_cast<std::uint16_t*>(mine.raw()), s.share);
    start_gather(*world_, mine, parts.all);
}

namespace {

/// A run of a row in a rank's shard, and its place among what the rank sends of some rows.
struct Packed : Partition::Piece {
    std::int64_t at = 0;
};

/// What each rank has of the rows that `is_asked` names, in their order, each run at a multiple of the table's alignment.
std::vector<std::vector<Packed>> pack(const Partition& partition, const std::function<bool(int)>& is_asked, std::int64_t& longest) {
    std::vector<std::vector<Packed>> all(static_cast<std::size_t>(partition.ranks()));
    longest = 0;
    for (int rank = 0; rank < partition.ranks(); ++rank) {
        std::int64_t end = 0;
        for (const Partition::Piece& p : partition.pieces(rank)) {
            if (!is_asked(p.row)) continue;
            all[static_cast<std::size_t>(rank)].push_back({p, end});
            end += (p.count + ParameterTable::alignment - 1) / ParameterTable::alignment * ParameterTable::alignment;
        }
        longest = std::max(longest, end);
    }
    return all;
}

/// Calls f(run, its first number, count, place from `begin` on) for what of the runs lies in [begin, end).
template <typename Function>
void each_within(const std::vector<Packed>& runs, std::int64_t begin, std::int64_t end, Function f) {
    for (const Packed& p : runs) {
        const std::int64_t from = std::max(begin, p.at), to = std::min(end, p.at + p.count);
        if (from < to) f(p, from - p.at, to - from, from - begin);
    }
}

}  // namespace

// Rows of all segments at once, each rank's runs of them packed, piece by piece through `room`.
void ShardedWeights::bring_rows(const Tensor& room) {
    const int ranks = partition().ranks();
    for (const bool halves : {true, false}) {
        const auto held = [&](int row) { return halves ? (rows_->fp32(row).empty() ? rows_->bf16(row) : Tensor()) : rows_->fp32(row); };
        std::int64_t longest = 0;
        const auto packed = pack(partition(), [&](int row) { return !held(row).empty(); }, longest);
        const DType dtype = halves ? DType::bf16 : DType::f32;
        const Tensor memory(room.raw(), dtype, {static_cast<std::int64_t>(room.bytes() / size_of(dtype))}, room.device());
        constexpr std::int64_t unit = 8;  // numbers of either kind begin at multiples of 16 bytes
        const std::int64_t most = memory.elements() / ranks / unit * unit;
        ATELIER_CHECK(most > 0, "{} bytes are no room for parts of {} ranks", room.bytes(), ranks);
        for (std::int64_t begin = 0; begin < longest; begin += most) {
            const std::int64_t end = std::min(longest, begin + most);
            const Parts parts(memory, end - begin, ranks);
            const Tensor mine = parts.of(world_->rank());
            each_within(packed[static_cast<std::size_t>(world_->rank())], begin, end, [&](const Packed& p, std::int64_t first, std::int64_t n, std::int64_t at) {
                const Tensor from = shard_.slice(p.local + first, p.local + first + n);
                if (halves)
                    round_there(from.f32(), static_cast<std::uint16_t*>(mine.raw()) + at, n);
                else
                    transfer(from, mine.slice(at, at + n));
            });
            start_gather(*world_, mine, parts.all);
            finish();
            for (int rank = 0; rank < ranks; ++rank)
                each_within(packed[static_cast<std::size_t>(rank)], begin, end, [&](const Packed& p, std::int64_t first, std::int64_t n, std::int64_t at) {
                    const Tensor row = held(p.row);
                    transfer(parts.of(rank).slice(at, at + n), row.reshaped({row.elements()}).slice(p.first + first, p.first + first + n));
                });
        }
    }
    rows_->round_both();
}

void ShardedWeights::refresh() {
    const Tensor room = forget();
    if (rounds()) return bring_rows(room);
    for (std::size_t i = 0; i < resident_->memory().size(); ++i) {
        if (resident_->memory()[i].empty()) continue;
        start(partition().segments()[i], resident_->memory()[i]);
        finish();
    }
}

void ShardedWeights::with_numbers(const std::function<void(const ParameterStore&)>& use) {
    if (!rounds()) return use(ParameterStore(partition().table(), *this));
    settle();
    std::unique_ptr<ShardedWeights> exact;
    const Arena arena = Arena::of("weights in fp32", [&](Arena& taken) {
        exact.reset();
        exact = std::make_unique<ShardedWeights>(partition(), *world_, shard_, taken, device());
    });
    exact->refresh();
    use(ParameterStore(partition().table(), *exact));
    exact.reset();
}

Bytes window_bytes(const Partition& partition, Device device, ops::ProductPrecision precision) {
    const auto self = comm::make_self();
    Arena none = Arena::measuring("shard");
    const Tensor shard = none.take_f32({partition.shard_size()}, device);
    return Workspace::measure([&](Arena& arena) { ShardedWeights(partition, *self, shard, arena, device, precision); });
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
    world_->start_sum_shares(atelier::numbers(all, 0, s.share * partition_->ranks()), atelier::numbers(share_, 0, s.share));
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

Tensor ShardedGradients::row(int index) {
    const int block = partition_->table().spec(index).block;
    if (block < 0) return resident_.row(index);
    ATELIER_CHECK(block == used_, "the gradient of {} of block {} is wanted, block {} is in use", partition_->table().spec(index).name, block,
                  used_);
    const std::int64_t at = partition_->table().offset(index) - partition_->of_block(block).begin;
    const Shape& shape = partition_->table().spec(index).shape;
    return slots_[turn_].slice(at, at + shape.elements()).reshaped(shape);
}

}  // namespace atelier::nn
