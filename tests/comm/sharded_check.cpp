// Run by ctest on 1, 2 and 3 ranks: weights gathered block by block and gradients cut over ranks, against what one rank would hold.
#include <algorithm>
#include <vector>

#include "comm/run_main.hpp"
#include "core/error.hpp"
#include "nn/sharded.hpp"

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
    return comm::run_main(argc, argv, "sharded_check", [](comm::Communicator& world, int, char**) {
        const nn::ParameterTable t = table();
        for (const int ranks : {1, 2, 3, 7, 64}) check_partition(nn::Partition(t, ranks));
        const nn::Partition partition(t, world.size());
        check_weights(world, partition);
        check_gradients(world, partition);
        return 0;
    });
}
