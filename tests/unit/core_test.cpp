#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "core/arena.hpp"
#include "core/device_turn.hpp"
#include "core/error.hpp"
#include "core/json.hpp"
#include "core/memory.hpp"
#include "core/parallel.hpp"
#include "core/philox.hpp"
#include "core/process.hpp"

namespace atelier {
namespace {

TEST(Error, NamesPlaceRankAndMessage) {
    try {
        ATELIER_CHECK_INPUT(1 == 2, "file {} is short", "a.bin");
        FAIL();
    } catch (const Error& e) {
        EXPECT_EQ(e.exit_code(), 3);
        EXPECT_EQ(e.message(), "file a.bin is short");
        EXPECT_NE(std::string(e.what()).find("1 == 2"), std::string::npos);
        EXPECT_NE(std::string(e.what()).find("rank 0 of 1"), std::string::npos);
    }
}

TEST(Error, EndsAProgramWithTheDocumentedCode) {
    const auto ends = [](auto&& thrown) {
        try {
            throw thrown;
        } catch (...) {
            ::testing::internal::CaptureStderr();
            const int code = report_failure("atelier-test");
            return std::pair(code, ::testing::internal::GetCapturedStderr());
        }
    };
    const auto [code, said] = ends(Error(ErrorKind::reward, "no verdict", "", "file", 1));
    EXPECT_EQ(code, static_cast<int>(ErrorKind::reward));
    EXPECT_NE(said.find("atelier-test: "), std::string::npos);
    EXPECT_NE(said.find("no verdict"), std::string::npos);
    EXPECT_EQ(ends(std::filesystem::filesystem_error("disk", "a.bin", std::make_error_code(std::errc::no_space_on_device))).first, 4);
    EXPECT_EQ(ends(std::runtime_error("other")).first, 1);
}

TEST(Json, LeavesOneKeyOfTheOutermostObjectOut) {
    const std::string rest = R"("after": {"outputs": [1, {"outputs": 2}]}, "before": [3, 4])";
    for (const char* value : {"5", "\"text\"", "null", "[]", "{}", R"([[1, {"a": [2]}], "b"])", R"({"a": {"b": [1, {}]}, "c": 3})"}) {
        const auto found = parse_json_without("outputs", fmt::format(R"({{"a": 1, "outputs": {}, {}}})", value, rest), "here");
        EXPECT_EQ(found.dump(), R"({"a":1,"after":{"outputs":[1,{"outputs":2}]},"before":[3,4]})") << value;
    }
    EXPECT_EQ(parse_json_without("outputs", R"([{"outputs": 1}])", "here").dump(), R"([{"outputs":1}])");
    EXPECT_THROW(parse_json_without("outputs", R"({"outputs": [1, 2})", "here"), Error) << "what is left out is JSON all the same";
}

TEST(Arena, MeasuresThenHolds) {
    auto layout = [](Arena& arena) {
        Tensor a = arena.take_f32({3, 5});
        Tensor b = arena.take(DType::u8, {7});
        return std::pair(a, b);
    };
    Arena plan = Arena::measuring("test");
    layout(plan);
    EXPECT_EQ(plan.used(), 128u);
    Arena real("test", plan.used());
    auto [a, b] = layout(real);
    a.f32()[14] = 1.5f;
    EXPECT_EQ(b.as<std::uint8_t>()[0], 0);
    EXPECT_THROW(real.take_f32({1}), Error);
    EXPECT_THROW(a.as<double>(), Error);
}

TEST(MemoryPlan, WhatLibrariesHoldOfADeviceIsAnEstimateBesideTheRest) {
    MemoryPlan plan;
    plan.hold("weights", Bytes(3, 100));
    plan.hold_during("updating", "activations", Bytes(0, 11));
    EXPECT_EQ(plan.total().device, 111U);
    plan.hold_device_libraries();
    plan.hold_of_libraries("collectives", 7);
    plan.hold_of_libraries("nothing", 0);
    EXPECT_EQ(plan.without_libraries(), 111U);
    EXPECT_GT(plan.total().device, 118U + (1U << 30));
    EXPECT_NE(plan.str().find("libraries on the device"), std::string::npos);
    EXPECT_EQ(plan.str().find("nothing"), std::string::npos);
}

// Known answers of the Random123 distribution (kat_vectors, philox4x32 10 rounds).
TEST(DeviceTurn, ComesInTheOrderOfAsking) {
    std::string order;  // of those who had it
    std::vector<std::thread> threads;
    {
        const DeviceTurn first(Device::cuda);
        for (const char name : {'a', 'b', 'c', 'd'}) {
            threads.emplace_back([&order, name] {
                const DeviceTurn turn(Device::cuda);
                order += name;
            });
            while (DeviceTurn::waiting() < threads.size()) std::this_thread::yield();
        }
        order += '1';
    }
    {
        const DeviceTurn again(Device::cuda);  // who gave it up comes last
        order += '2';
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(order, "1abcd2");
    EXPECT_EQ(DeviceTurn::waiting(), 0u);
}

TEST(DeviceTurn, IsOneThreadsAtATime) {
    std::int64_t count = 0;
    std::atomic<int> inside = 0, together = 0;
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t)
        threads.emplace_back([&] {
            for (int i = 0; i < 2000; ++i) {
                const DeviceTurn turn(Device::cuda);
                if (++inside > 1) ++together;
                ++count;
                --inside;
            }
        });
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(count, 8000);
    EXPECT_EQ(together, 0);
}

TEST(DeviceTurn, EndsWithAnExceptionAndWithTheOutermostScope) {
    const auto others_get_it = [] {
        bool got = false;
        std::thread([&] {
            const DeviceTurn turn(Device::cuda);
            got = DeviceTurn::is_mine();
        }).join();
        return got;
    };
    try {
        const DeviceTurn turn(Device::cuda);
        throw std::runtime_error("work that fails");
    } catch (const std::runtime_error&) {
        EXPECT_FALSE(DeviceTurn::is_mine());
    }
    EXPECT_TRUE(others_get_it());
    std::atomic<bool> has_ended = false;
    std::thread other;
    {
        const DeviceTurn outer(Device::cuda);
        other = std::thread([&] {
            const DeviceTurn turn(Device::cuda);
            EXPECT_TRUE(has_ended);
        });
        while (DeviceTurn::waiting() == 0) std::this_thread::yield();
        { const DeviceTurn inner(Device::cuda); }
        EXPECT_TRUE(DeviceTurn::is_mine());
        EXPECT_EQ(DeviceTurn::waiting(), 1u);
        has_ended = true;
    }
    other.join();
    EXPECT_TRUE(others_get_it());
    const DeviceTurn none(Device::cpu);
    EXPECT_FALSE(DeviceTurn::is_mine());
    EXPECT_TRUE(others_get_it());
}

TEST(DeviceTurn, SharedADeviceIsUsedInTurns) {
    EXPECT_NO_THROW(check_device_turn());
    const SharedDevice shared;
    EXPECT_THROW(check_device_turn(), Error);
    const DeviceTurn turn(Device::cuda);
    EXPECT_NO_THROW(check_device_turn());
    std::thread([] { EXPECT_THROW(check_device_turn(), Error) << "another thread's turn"; }).join();
}

TEST(Philox, KnownAnswers) {
    EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
              (std::array<std::uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
    EXPECT_EQ(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
              (std::array<std::uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
    EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
              (std::array<std::uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, NormalsHaveUnitMomentsAndDependOnPositionOnly) {
    const RandomKey key = random_key(1, RandomUse::test);
    std::vector<float> all(100001), some(37);
    fill_normal(key, all);
    fill_normal(key, some);
    for (std::size_t i = 0; i < some.size(); ++i) EXPECT_EQ(all[i], some[i]);
    double mean = 0, square = 0;
    for (float v : all) mean += v, square += double(v) * v;
    EXPECT_NEAR(mean / all.size(), 0, 0.015);
    EXPECT_NEAR(square / all.size(), 1, 0.02);
    EXPECT_NE(random_key(1, RandomUse::test, 1, 0), random_key(1, RandomUse::test, 0, 1));
}

TEST(Parallel, CoversEveryIndexOnceAndRethrows) {
    for (int n : {1, 2, 5}) {
        set_threads(n);
        for (int repeat = 0; repeat < 200; ++repeat) {
            std::vector<std::atomic<int>> hits(1003);
            parallel_for(1003, 7, [&](std::int64_t begin, std::int64_t end) {
                for (auto i = begin; i < end; ++i) ++hits[i];
            });
            for (auto& hit : hits) ASSERT_EQ(hit.load(), 1);
        }
        EXPECT_THROW(parallel_for(100, 1, [](std::int64_t i, std::int64_t) { ATELIER_CHECK(i != 63, "boom"); }),
                     Error);
    }
    set_threads(1);
}

TEST(Parallel, SecondCallersWorkBesideTheFirst) {
    set_threads(2);
    constexpr std::int64_t count = 4096;
    const auto count_again_and_again = [](std::int64_t& wrong) {
        std::vector<int> seen(count);
        for (int round = 1; round <= 200; ++round) {
            parallel_for(count, 16, [&](std::int64_t begin, std::int64_t end) {
                for (std::int64_t i = begin; i < end; ++i) ++seen[static_cast<std::size_t>(i)];
            });
            wrong += std::count_if(seen.begin(), seen.end(), [&](int times) { return times != round; });
        }
    };
    std::int64_t wrong[3] = {};
    {
        std::vector<std::jthread> callers;
        for (std::int64_t& mine : wrong) callers.emplace_back([&] { count_again_and_again(mine); });
    }
    set_threads(1);
    for (const std::int64_t mine : wrong) EXPECT_EQ(mine, 0);
}

}  // namespace
}  // namespace atelier
