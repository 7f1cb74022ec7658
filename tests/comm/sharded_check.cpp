// Run by ctest on 1, 2 and 3 ranks: weights gathered block by block and gradients cut over ranks, against what one rank would hold. With the
// argument "device" weights on the emulated device, in fp32 and rounded.
#include <algorithm>
#include <cstring>
#include <vector>

#include "comm/on_device.hpp"
#include "comm/run_main.hpp"
#include "core/convert.hpp"
#include "core/error.hpp"
#include "core/numbers.hpp"
#include "nn/sharded.hpp"
#include "ops/backend.hpp"

namespace {

using namespace atelier;

nn::ParameterTable table() {
    nn::ParameterTable t;
    t.add({"stem", {3, 5}});
    for (int b = 0; b < 5; ++b) {
        t.add({.name = fmt::format("block.{}.matrix", b), .shape = {7, 9}, .block = b});
        t.add({.name = fmt::format("block.{}.norm", b), .shape = {9}, .decay = false, .block = b});
    }
    t.add({"head", {2, 3}});
    return t;
}

float weight(std::int64_t global) { return 0.5f + static_cast<float>(global); }
float gradient(int rank, std::int64_t global, int pass) {
    return 1.0f / static_cast<float>(3 + 5 * rank + global % 13 + 100 * pass);
}

void check_weights(comm::Communicator& world, const nn::Partition& partition) {
    const nn::ParameterTable& t = partition.table();
    const auto plan = [&](Arena& arena) { return nn::ShardedWeights(partition, world, Tensor(), arena); };
    Arena arena("weights", Workspace::measure(plan));
    nn::ShardedWeights weights = plan(arena);
    for (const auto& p : partition.pieces(world.rank()))
        for (std::int64_t i = 0; i < p.count; ++i) weights.shard().f32()[p.local + i] = weight(p.global + i);
    weights.refresh();
    const nn::ParameterStore store(t, weights);
    const auto check = [&](int row) {
        for (std::int64_t i = 0; i < t.spec(row).shape.elements(); ++i)
            ATELIER_CHECK(store[row].f32()[i] == weight(t.offset(row) + i), "{} element {}: found {}", t.spec(row).name, i, store[row].f32()[i]);
    };
    const auto visit = [&](int block) {
        store.acquire(block);
        for (int row = 0; row < t.size(); ++row)
            if (t.spec(row).block == block || t.spec(row).block < 0) check(row);
        store.release(block);
    };
    // A forward and a backward pass, two forward passes, jumps.
    for (const int block : {0, 1, 2, 3, 4, 4, 3, 2, 1, 0, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 2, 0, 4, 1}) visit(block);
    // After an update nothing old is left.
    for (std::int64_t i = 0; i < weights.shard().elements(); ++i) weights.shard().f32()[i] += 1000;
    weights.refresh();
    store.acquire(3);
    const int row = t.find("block.3.norm");
    ATELIER_CHECK(store[row].f32()[8] == weight(t.offset(row) + 8) + 1000, "a block of before the update");
    bool refused = false;
    try {
        store.at("block.2.norm");
    } catch (const Error&) {
        refused = true;
    }
    ATELIER_CHECK(refused, "a block that isn't acquired was given out");
    store.release(3);
}

/// Says which blocks are brought; their numbers are nobody's.
class CountedWindow final : public nn::BlockWindow {
  public:
    CountedWindow(const nn::Partition& partition, AfterLast after_last, Arena& arena)
        : BlockWindow(partition, partition.table().blocks(), after_last, arena, Device::cpu, DType::f32) {}
    Device device() const override { return Device::cpu; }
    /// What is brought for such a sequence.
    std::vector<int> brought(const std::vector<int>& acquired, int times) {
        forget();
        brought_.clear();
        for (const int block : acquired)
            for (int i = 0; i < times; ++i) {
                acquire(block);
                release(block);
            }
        return brought_;
    }

  private:
    void start(const nn::Partition::Segment& segment, const Tensor&) override { brought_.push_back(segment.block); }
    void finish() override {}
    std::vector<int> brought_;
};

void check_window(const nn::Partition& partition) {
    using AfterLast = nn::BlockWindow::AfterLast;
    const auto check = [&](AfterLast after_last, const std::vector<int>& acquired, const std::vector<int>& expected) {
        std::unique_ptr<CountedWindow> window;
        const Arena arena = Arena::of("window", [&](Arena& taken) {
            window.reset();
            window = std::make_unique<CountedWindow>(partition, after_last, taken);
        });
        // As often as a block has rows: it is acquired for each of them where weights are saved.
        for (const int times : {1, 2, 3}) {
            const std::vector<int> found = window->brought(acquired, times);
            ATELIER_CHECK(found == expected, "blocks {} acquired {} times each: {} brought, found {}", fmt::join(acquired, " "), times,
                          fmt::join(expected, " "), fmt::join(found, " "));
        }
    };
    // Forward; forward and backward, of which the last blocks are there when the direction turns; the same again.
    check(AfterLast::before, {0, 1, 2, 3, 4}, {0, 1, 2, 3, 4});
    check(AfterLast::before, {0, 1, 2, 3, 4, 4, 3, 2, 1, 0}, {0, 1, 2, 3, 4, 2, 1, 0});
    check(AfterLast::before, {0, 1, 2, 3, 4, 4, 3, 2, 1, 0, 0, 1, 2, 3, 4}, {0, 1, 2, 3, 4, 2, 1, 0, 2, 3, 4});
    check(AfterLast::first, {0, 1, 2, 3, 4, 0, 1, 2}, {0, 1, 2, 3, 4, 0, 1, 2, 3});
}

/// Rows of every kind: operands of products in blocks and outside, one that is looked up as well, one whose rows don't begin at multiples of 16
/// bytes, vectors.
nn::ParameterTable device_table() {
    nn::ParameterTable t;
    t.add({.name = "stem", .shape = {3, 8}, .reader = nn::Reader::products});
    t.add({.name = "stem.bias", .shape = {3}});
    t.add({.name = "embedding", .shape = {21, 16}, .reader = nn::Reader::both});
    for (int b = 0; b < 3; ++b) {
        t.add({.name = fmt::format("block.{}.matrix", b), .shape = {7, 24}, .block = b, .reader = nn::Reader::products});
        t.add({.name = fmt::format("block.{}.narrow", b), .shape = {7, 9}, .block = b, .reader = nn::Reader::products});
        t.add({.name = fmt::format("block.{}.norm", b), .shape = {9}, .block = b});
        t.add({.name = fmt::format("block.{}.other", b), .shape = {7, 24}, .block = b, .reader = nn::Reader::products});
    }
    t.add({.name = "head", .shape = {2, 40}, .reader = nn::Reader::products});
    return t;
}

/// Not what bf16 can hold.
float fine_weight(std::int64_t global) { return weight(global) * 1.0009765625f; }

void check_device_weights(comm::Communicator& host_world, ops::ProductPrecision precision) {
    const nn::ParameterTable t = device_table();
    const auto world = comm::make_on_device(host_world, ops::load_backend().compute_stream());
    const nn::Partition partition(t, world->size());
    std::unique_ptr<nn::ShardedWeights> made;
    const Arena arena = Arena::of("weights", [&](Arena& taken) {
        made.reset();
        made = std::make_unique<nn::ShardedWeights>(partition, *world, Tensor(), taken, Device::cuda, precision);
    });
    nn::ShardedWeights& weights = *made;
    const bool rounds = precision == ops::ProductPrecision::bf16;
    ATELIER_CHECK(weights.rounds() == rounds, "weights that round");
    ATELIER_CHECK(arena.bytes() == nn::window_bytes(partition, Device::cuda, precision) + Bytes(0, static_cast<std::size_t>((partition.shard_size() * 4 + 255) / 256 * 256)),
                  "{} bytes were taken", arena.bytes().device);
    const auto fill = [&](float more) {
        const Numbers shard(partition.shard_size());
        for (const auto& p : partition.pieces(world->rank()))
            for (std::int64_t i = 0; i < p.count; ++i) shard.data()[p.local + i] = fine_weight(p.global + i) + more;
        transfer(shard.tensor(), weights.shard());
        weights.refresh();
    };
    const auto check_row = [&](const Tensor& found, int row, float more) {
        const std::int64_t n = t.spec(row).shape.elements();
        ATELIER_CHECK(found.shape() == t.spec(row).shape, "{}: shape {}", t.spec(row).name, found.shape().str());
        std::vector<std::byte> here(found.bytes());
        device_memory().to_host(here.data(), found.raw(), here.size());
        for (std::int64_t i = 0; i < n; ++i) {
            const float expected = fine_weight(t.offset(row) + i) + more;
            std::uint16_t bits = 0;
            float value = 0;
            if (found.dtype() == DType::bf16)
                std::memcpy(&bits, here.data() + 2 * i, 2);
            else
                std::memcpy(&value, here.data() + 4 * i, 4);
            const bool is_right = found.dtype() == DType::bf16 ? bits == f32_to_bf16(expected) : value == expected;
            ATELIER_CHECK(is_right, "{} element {}: {} in {}", t.spec(row).name, i, expected, name_of(found.dtype()));
        }
    };
    const nn::ParameterStore store(t, weights);
    const auto visit = [&](int block, float more) {
        store.acquire(block);
        for (int row = 0; row < t.size(); ++row) {
            const nn::ParameterSpec& spec = t.spec(row);
            if (spec.block >= 0 && spec.block != block) continue;
            const bool operand = spec.reader != nn::Reader::operations && spec.shape[spec.shape.rank() - 1] % 8 == 0;
            ATELIER_CHECK(store[row].dtype() == (rounds && operand ? DType::bf16 : DType::f32), "{} is {}", spec.name, name_of(store[row].dtype()));
            check_row(store[row], row, more);
            if (spec.reader != nn::Reader::products) check_row(store.numbers(row), row, more);
        }
        store.release(block);
    };
    fill(0);
    for (const int block : {0, 1, 2, 2, 1, 0, 0, 2, 1}) visit(block, 0);
    fill(1000);
    for (const int block : {2, 0, 1}) visit(block, 1000);
    // What goes to files is not rounded.
    weights.with_numbers([&](const nn::ParameterStore& exact) {
        for (int row = 0; row < t.size(); ++row) {
            const int block = t.spec(row).block;
            if (block >= 0) exact.acquire(block);
            ATELIER_CHECK(exact[row].dtype() == DType::f32, "{} is not as it is", t.spec(row).name);
            check_row(exact[row], row, 1000);
            if (block >= 0) exact.release(block);
        }
    });
    visit(1, 1000);
}

void check_gradients(comm::Communicator& world, const nn::Partition& partition) {
    const nn::ParameterTable& t = partition.table();
    const auto plan = [&](Arena& arena) { return nn::ShardedGradients(partition, world, arena); };
    Arena arena("gradients", Workspace::measure(plan));
    nn::ShardedGradients gradients = plan(arena);
    const nn::ParameterStore store(t, gradients);
    for (int round = 0; round < 2; ++round) {
        gradients.zero();
        for (int pass = 0; pass < 3; ++pass) {
            const auto add = [&](int row) {
                for (std::int64_t i = 0; i < t.spec(row).shape.elements(); ++i)
                    store[row].f32()[i] += gradient(world.rank(), t.offset(row) + i, pass);
            };
            for (int block = t.blocks() - 1; block >= 0; --block) {
                store.acquire(block);
                for (int row = 0; row < t.size(); ++row)
                    if (t.spec(row).block == block) add(row);
                store.release(block);
            }
            for (int row = 0; row < t.size(); ++row)
                if (t.spec(row).block < 0) add(row);
        }
        gradients.reduce();
        for (const auto& p : partition.pieces(world.rank()))
            for (std::int64_t i = 0; i < p.count; ++i) {
                double expected = 0;
                for (int pass = 0; pass < 3; ++pass)
                    for (int rank = 0; rank < world.size(); ++rank) expected += double(gradient(rank, p.global + i, pass));
                const float found = gradients.shard().f32()[p.local + i];
                ATELIER_CHECK(std::abs(found - expected) < 1e-6 * expected, "gradient {}: {} expected, found {}", p.global + i, expected, found);
            }
        double padding = 0, pieces = 0;
        for (std::int64_t i = 0; i < gradients.shard().elements(); ++i) padding += double(gradients.shard().f32()[i]) * gradients.shard().f32()[i];
        for (const auto& p : partition.pieces(world.rank()))
            for (std::int64_t i = 0; i < p.count; ++i) pieces += double(gradients.shard().f32()[p.local + i]) * gradients.shard().f32()[p.local + i];
        ATELIER_CHECK(padding == pieces, "padding holds gradients");
    }
}

/// Every number belongs to one rank.
void check_partition(const nn::Partition& partition) {
    std::vector<int> owners(static_cast<std::size_t>(partition.table().flat_size()));
    for (int rank = 0; rank < partition.ranks(); ++rank) {
        std::int64_t local = 0;
        for (const auto& p : partition.pieces(rank)) {
            ATELIER_CHECK(p.local >= local && p.local + p.count <= partition.shard_size(), "pieces overlap");
            local = p.local + p.count;
            for (std::int64_t i = 0; i < p.count; ++i) ++owners[static_cast<std::size_t>(p.global + i)];
        }
    }
    for (int row = 0; row < partition.table().size(); ++row)
        for (std::int64_t i = 0; i < partition.table().spec(row).shape.elements(); ++i)
            ATELIER_CHECK(owners[static_cast<std::size_t>(partition.table().offset(row) + i)] == 1, "number {} of {} has no one owner", i,
                          partition.table().spec(row).name);
}

}  // namespace

int main(int argc, char** argv) {
    return comm::run_main(argc, argv, "sharded_check", [](comm::Communicator& world, int count, char** arguments) {
        if (count > 1 && std::strcmp(arguments[1], "device") == 0) {
            for (const auto precision : {ops::ProductPrecision::fp32, ops::ProductPrecision::bf16}) check_device_weights(world, precision);
            return 0;
        }
        const nn::ParameterTable t = table();
        for (const int ranks : {1, 2, 3, 7, 64}) check_partition(nn::Partition(t, ranks));
        const nn::Partition partition(t, world.size());
        check_window(partition);
        check_weights(world, partition);
        check_gradients(world, partition);
        return 0;
    });
}
