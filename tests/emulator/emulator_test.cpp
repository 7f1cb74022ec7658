// What the emulator must see: kernels wrong on purpose.
#include <gtest/gtest.h>

#include <vector>

#include "core/error.hpp"
#include "emulator/block_emulator.hpp"

namespace {

void run(int threads, const std::function<void()>& kernel, std::size_t shared = 0) { emulator::run(1, 1, 1, threads, shared, kernel); }

/// Each thread's value is handed to its mirror through shared memory.
std::vector<float> mirrored(bool with_barrier) {
    std::vector<float> out(64);
    run(64, [&] {
        ATELIER_SHARED(float, values, 64);
        values[threadIdx.x] = static_cast<float>(threadIdx.x);
        if (with_barrier) __syncthreads();
        out[threadIdx.x] = values[63 - threadIdx.x];
    });
    return out;
}

TEST(Emulator, ABarrierOrdersSharedMemoryAndItsAbsenceShows) {
    for (const auto schedule : {emulator::Schedule::ascending, emulator::Schedule::descending, emulator::Schedule::shuffled}) {
        emulator::set_schedule(schedule);
        const std::vector<float> good = mirrored(true), bad = mirrored(false);
        bool differs = false;
        for (int i = 0; i < 64; ++i) {
            EXPECT_EQ(good[i], 63.0f - static_cast<float>(i));
            differs = differs || !(bad[i] == good[i]);  // NaN: never written in this block
        }
        EXPECT_TRUE(differs);
    }
    emulator::set_schedule(emulator::Schedule::ascending);
}

TEST(Emulator, ShufflesGiveTheOtherLanesValueTwiceInARow) {
    std::vector<int> out(64);
    run(64, [&] {
        int v = static_cast<int>(threadIdx.x);
        v = __shfl_xor_sync(0xffffffffu, v, 1) + 100;
        out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, v, 16);
    });
    for (int i = 0; i < 64; ++i) EXPECT_EQ(out[i], (i ^ 17) + 100);
}

TEST(Emulator, SharedMemoryIsNotZeroAtFirst) {
    float found = 0;
    run(32, [&] {
        ATELIER_DYNAMIC_SHARED(float, values);
        if (threadIdx.x == 0) found = values[0];
    }, 16);
    EXPECT_TRUE(std::isnan(found));
}

TEST(Emulator, ABarrierThatSomeNeverReachIsAnError) {
    EXPECT_THROW(run(64, [] { if (threadIdx.x < 63) __syncthreads(); }), atelier::Error);
}

TEST(Emulator, AShuffleThatALaneNeverReachesIsAnError) {
    EXPECT_THROW(run(32, [] { if (threadIdx.x != 5) __shfl_xor_sync(0xffffffffu, 1, 1); }), atelier::Error);
}

TEST(Emulator, ErrorsLeaveItUsable) {
    EXPECT_THROW(run(32, [] { ATELIER_FAIL(atelier::ErrorKind::numeric, "in a thread"); }), atelier::Error);
    EXPECT_EQ(mirrored(true)[0], 63.0f);
}

TEST(EmulatorDeathTest, WritingBehindAnAllocationFaults) {
    auto* memory = static_cast<float*>(emulator::allocate(8 * sizeof(float), false));
    run(8, [=] { memory[threadIdx.x] = 1; });
    EXPECT_DEATH(run(9, [=] { memory[threadIdx.x] = 1; }), "");
    emulator::release(memory);
}

TEST(EmulatorDeathTest, TheHostMayNotTouchDeviceMemory) {
    auto* memory = static_cast<volatile float*>(emulator::allocate(sizeof(float), false));
    EXPECT_DEATH(*memory = 1, "");
    {
        const emulator::Access copy_engine;
        *memory = 1;
    }
    emulator::release(const_cast<float*>(memory));
}

}  // namespace
