// Run by ctest on 1, 2 and 3 ranks: collectives against what every rank can compute itself, and a rank that fails.
#include <csignal>
#include <cstring>
#include <unistd.h>
#include <vector>

#include "comm/run_main.hpp"
#include "core/error.hpp"
#include "core/process.hpp"

namespace {

using namespace atelier;

float value(int rank, std::size_t i) { return 1.0f / static_cast<float>(3 + rank + static_cast<int>(i % 17)); }

void check_sums(comm::Communicator& world) {
    ATELIER_CHECK(process().rank == world.rank() && process().world_size == world.size(), "the process's record is not set");
    for (const std::size_t n : {std::size_t{1}, std::size_t{5}, (std::size_t{1} << 20) + 3}) {
        std::vector<float> sum(n);
        std::vector<double> wide(n);
        for (std::size_t i = 0; i < n; ++i) wide[i] = sum[i] = value(world.rank(), i);
        world.sum(std::span(sum));
        world.sum(std::span(wide));
        for (std::size_t i = 0; i < n; ++i) {
            float expected = value(0, i);
            double expected_wide = value(0, i);
            for (int r = 1; r < world.size(); ++r) expected += value(r, i), expected_wide += value(r, i);
            // In rank order, so the very same bits.
            ATELIER_CHECK(sum[i] == expected && wide[i] == expected_wide, "sum {} of {}: {} expected, found {}", i, n, expected, sum[i]);
        }
    }
    const auto ranks = static_cast<std::size_t>(world.size()), me = static_cast<std::size_t>(world.rank());
    for (const std::size_t share : {std::size_t{1}, std::size_t{7}, (std::size_t{1} << 20) + 5}) {
        std::vector<float> all(share * ranks), mine(share), together(share * ranks);
        for (std::size_t i = 0; i < all.size(); ++i) all[i] = value(world.rank(), i);
        world.sum_shares(all, mine);
        world.start_gather_shares(mine, together);
        world.finish_gather();
        for (std::size_t i = 0; i < all.size(); ++i) {
            float expected = value(0, i);
            for (int r = 1; r < world.size(); ++r) expected += value(r, i);
            ATELIER_CHECK(together[i] == expected, "share {} of {}: {} expected, found {}", i, all.size(), expected, together[i]);
        }
        ATELIER_CHECK(mine[share - 1] == together[me * share + share - 1], "this rank's share");
    }
    ATELIER_CHECK(world.max(world.rank()) == world.size() - 1, "max");
    ATELIER_CHECK(world.any(world.rank() == world.size() - 1) && !world.any(false), "any");
    std::vector<std::byte> mine(static_cast<std::size_t>(world.rank()), std::byte(world.rank()));
    const auto all = world.gather(mine);
    for (int r = 0; r < world.size(); ++r)
        ATELIER_CHECK(all[r] == std::vector<std::byte>(static_cast<std::size_t>(r), std::byte(r)), "gather of rank {}", r);
    std::vector<std::byte> text(100, std::byte(world.rank()));
    world.broadcast(text, world.size() - 1);
    ATELIER_CHECK(text[99] == std::byte(world.size() - 1), "broadcast");
    world.barrier();
}

}  // namespace

int main(int argc, char** argv) {
    return comm::run_main(argc, argv, "comm_check", [](comm::Communicator& world, int, char** arguments) {
        const bool last = world.rank() == world.size() - 1;
        if (std::strcmp(arguments[1], "throws") == 0 && last) ATELIER_FAIL(ErrorKind::numeric, "this rank fails on purpose");
        if (std::strcmp(arguments[1], "dies") == 0 && last) kill(getpid(), SIGKILL);
        check_sums(world);
        return 0;
    });
}
