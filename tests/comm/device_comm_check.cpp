// Run by ctest on 1, 2 and 3 ranks: collectives of the device communicator against what every rank can compute itself, on memory that
// the test's transport can reach; and how a rank ends that the others leave alone, by tests/emulator/nccl_stand_ins.cpp.
#include <dlfcn.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "comm/device_communicator.hpp"
#include "comm/on_device.hpp"
#include "comm/run_main.hpp"
#include "core/error.hpp"
#include "core/numbers.hpp"
#include "ops/backend.hpp"

namespace {

using namespace atelier;

float value(int rank, std::int64_t i) { return 1.0f / static_cast<float>(3 + rank + static_cast<int>(i % 17)); }

float expected_sum(int ranks, std::int64_t i) {
    float sum = value(0, i);
    for (int r = 1; r < ranks; ++r) sum += value(r, i);
    return sum;  // in rank order, so the very same bits
}

std::vector<float> mine(int rank, std::int64_t n) {
    std::vector<float> v(static_cast<std::size_t>(n));
    for (std::int64_t i = 0; i < n; ++i) v[static_cast<std::size_t>(i)] = value(rank, i);
    return v;
}

/// The computation that waits for a gather does not wait for a sum that was queued after it, nor the other way round.
void check_waiting(comm::DeviceCommunicator& device, int size) {
    void* const library = dlopen(std::getenv("ATELIER_NCCL_BACKEND"), RTLD_NOW | RTLD_NOLOAD);
    const auto count = [&](const char* name) { return reinterpret_cast<int (*)()>(dlsym(library, name))(); };
    std::vector<float> all(static_cast<std::size_t>(size)), mine(1);
    device.all_gather(mine.data(), all.data(), sizeof(float));
    const int gathered = count("stand_in_queued");
    device.reduce_scatter(all.data(), mine.data(), 1);
    const int summed = count("stand_in_queued");
    device.gather_before_compute();
    ATELIER_CHECK(summed > gathered && count("stand_in_waited_for") == gathered, "a gather is waited for with what comes after it");
    device.sum_before_compute();
    ATELIER_CHECK(count("stand_in_waited_for") == summed, "a sum is waited for before it is there");
}

int check_sums(comm::Communicator& world) {
    const auto device = comm::make_device_communicator(world, nullptr);
    const int size = world.size();
    // Fewer numbers than ranks, uneven ones, and more than the room holds at a time.
    for (const std::int64_t n : {std::int64_t{1}, std::int64_t{5}, (std::int64_t{1} << 20) + 3, (std::int64_t{1} << 24) + 7}) {
        std::vector<float> v = mine(world.rank(), n);
        device->after_compute();
        device->sum(v.data(), n);
        device->sum_before_compute();
        for (std::int64_t i = 0; i < n; ++i)
            ATELIER_CHECK(v[static_cast<std::size_t>(i)] == expected_sum(size, i), "sum {} of {}", i, n);
    }
    for (const std::int64_t share : {std::int64_t{1}, std::int64_t{1000}, (std::int64_t{1} << 23) + 5}) {
        const std::vector<float> v = mine(world.rank(), share * size);
        std::vector<float> part(static_cast<std::size_t>(share)), all(v.size());
        device->reduce_scatter(v.data(), part.data(), share);
        device->all_gather(part.data(), all.data(), part.size() * sizeof(float));
        for (std::int64_t i = 0; i < share * size; ++i)
            ATELIER_CHECK(all[static_cast<std::size_t>(i)] == expected_sum(size, i), "number {} of {} x {}", i, size, share);
    }
    check_waiting(*device, size);
    return 0;
}

/// The stand-ins say nothing of a rank that is gone, or that one is after a second: the last one, which only lives so that the launcher
/// doesn't end the others before they see to it themselves.
int check_left_alone(comm::Communicator& world, const char* how) {
    if (std::strcmp(how, "throws") != 0) setenv("ATELIER_LAUNCHER_PATIENCE", "2", 1);
    const auto device = comm::make_on_device(world, ops::load_backend().compute_stream());
    if (std::strcmp(how, "leaves") != 0 && world.rank() == world.size() - 1) std::this_thread::sleep_for(std::chrono::minutes(1));
    const Numbers values(world.size(), Device::cuda);
    const auto bytes = std::as_writable_bytes(values.span());
    device->start_gather_shares(bytes.subspan(static_cast<std::size_t>(world.rank()) * sizeof(float), sizeof(float)), bytes);
    if (std::strcmp(how, "throws") == 0) ATELIER_FAIL(ErrorKind::numeric, "this rank fails on purpose");
    if (std::strcmp(how, "leaves") == 0) return 0;
    device->finish_gather();
    const Numbers copied(values.tensor(), Device::cpu);
    ATELIER_FAIL(ErrorKind::internal, "a copy of what never came");
}

int check(comm::Communicator& world, int count, char** arguments) {
    return count == 1 ? check_sums(world) : check_left_alone(world, arguments[1]);
}

}  // namespace

int main(int argc, char** argv) { return comm::run_main(argc, argv, "device_comm_check", check); }
