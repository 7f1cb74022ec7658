// Run by ctest on 1, 2 and 3 ranks: collectives against what every rank can compute itself, and a rank that fails.
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstring>
#include <exception>
#include <thread>
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
        world.start_gather_shares(std::as_bytes(std::span(mine)), std::as_writable_bytes(std::span(together)));
        world.finish_gather();
        for (std::size_t i = 0; i < all.size(); ++i) {
            float expected = value(0, i);
            for (int r = 1; r < world.size(); ++r) expected += value(r, i);
            ATELIER_CHECK(together[i] == expected, "share {} of {}: {} expected, found {}", i, all.size(), expected, together[i]);
        }
        ATELIER_CHECK(mine[share - 1] == together[me * share + share - 1], "this rank's share");
        // From its place among all, and of a number of bytes that is odd.
        std::vector<std::byte> bytes((2 * share + 1) * ranks);
        const auto place = std::span(bytes).subspan(me * (2 * share + 1), 2 * share + 1);
        std::fill(place.begin(), place.end(), std::byte(me + 1));
        world.gather_shares(place, bytes);
        for (std::size_t i = 0; i < bytes.size(); ++i)
            ATELIER_CHECK(bytes[i] == std::byte(i / (2 * share + 1) + 1), "byte {} of {} gathered in place", i, bytes.size());
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

/// Messages of all sizes between all ranks, sent by another thread while this one is in collectives.
void check_mailbox(comm::Communicator& world) {
    const auto mailbox = world.mailbox();
    const std::vector<std::size_t> sizes{0, 1, 1000, 300'000};
    const auto byte = [](int from, int to, std::size_t size, std::size_t i) { return std::byte((7 * from + 3 * to + size + i) & 255); };
    std::exception_ptr failure;
    std::thread messenger([&] {
        try {
            for (const std::size_t size : sizes)
                for (int to = 0; to < world.size(); ++to) {
                    std::vector<std::byte> bytes(size);
                    for (std::size_t i = 0; i < size; ++i) bytes[i] = byte(world.rank(), to, size, i);
                    mailbox->send(to, std::move(bytes));
                }
            std::vector<std::size_t> next(static_cast<std::size_t>(world.size()));
            for (std::size_t got = 0; got < sizes.size() * next.size() || mailbox->sending() > 0;) {
                const auto message = mailbox->receive();
                if (!message) {
                    std::this_thread::sleep_for(std::chrono::milliseconds(1));
                    continue;
                }
                ++got;
                const std::size_t size = sizes.at(next.at(static_cast<std::size_t>(message->source))++);
                ATELIER_CHECK(message->bytes.size() == size, "a message of {} bytes from {}, {} expected", message->bytes.size(), message->source, size);
                for (std::size_t i = 0; i < size; ++i)
                    ATELIER_CHECK(message->bytes[i] == byte(message->source, world.rank(), size, i), "byte {} of {}", i, size);
            }
        } catch (...) {
            failure = std::current_exception();
        }
    });
    check_sums(world);
    messenger.join();
    if (failure) std::rethrow_exception(failure);
}

/// The last rank apart from the others.
void check_split(comm::Communicator& world) {
    const int others = world.size() - 1;
    const bool is_last = world.rank() == others;
    const auto part = world.split(is_last ? 1 : 0);
    ATELIER_CHECK(part->size() == (is_last ? 1 : others) && part->rank() == (is_last ? 0 : world.rank()), "rank {} of {} in the part", part->rank(),
                  part->size());
    ATELIER_CHECK(part->max(world.rank()) == (is_last ? others : others - 1), "a maximum over the part");
    float one = 1;
    part->sum(std::span(&one, 1));
    ATELIER_CHECK(one == static_cast<float>(part->size()), "a sum over the part");
    ATELIER_CHECK(process().rank == world.rank() && process().world_size == world.size(), "the process's record was changed");
    world.barrier();
}

}  // namespace

int main(int argc, char** argv) {
    return comm::run_main(argc, argv, "comm_check", [](comm::Communicator& world, int, char** arguments) {
        const bool last = world.rank() == world.size() - 1;
        if (std::strcmp(arguments[1], "throws") == 0 && last) ATELIER_FAIL(ErrorKind::numeric, "this rank fails on purpose");
        if (std::strcmp(arguments[1], "dies") == 0 && last) kill(getpid(), SIGKILL);
        check_sums(world);
        check_mailbox(world);
        check_split(world);
        return 0;
    });
}
