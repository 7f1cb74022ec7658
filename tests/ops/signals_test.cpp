// Signals that arrive in the middle of a matrix product.
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <thread>
#include <vector>

#include "core/signals.hpp"
#include "ops/matmul.hpp"

namespace atelier {
namespace {

// oneDNN's AVX kernels point the stack pointer at packed panels on the heap: a handler that ran on their thread would write its frame
// there. Without the mask that catch_signals() sets, this test dies of a broken heap.
TEST(Signals, LeaveProductsAndTheHeapAlone) {
    catch_signals();
    EXPECT_FALSE(signal_was_seen());
    constexpr std::int64_t m = 37, n = 24, k = 600;  // of this depth oneDNN packs a panel in memory of its own
    std::vector<float> a(m * k), b(n * k), c(m * n), first;
    for (std::size_t i = 0; i < a.size(); ++i) a[i] = static_cast<float>(i % 7) - 3;
    for (std::size_t i = 0; i < b.size(); ++i) b[i] = static_cast<float>(i % 5) - 2;
    // Blocks around the operands, as a program's heap has them.
    std::vector<std::vector<int>> around(512, std::vector<int>(1024, 7));
    std::atomic<bool> over{false};
    std::thread sender([&] {
        while (!over) kill(getpid(), SIGUSR1);
    });
    // Long enough to meet some inside a product, however little of the processor this test gets.
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(500);
    std::int64_t products = 0, wrong = 0;
    while (std::chrono::steady_clock::now() < end || products < 200) {
        ops::matmul(false, true, 1.0f, {a.data(), m, k, k}, {b.data(), n, k, k}, 0.0f, {c.data(), m, n, n});
        if (first.empty()) first = c;
        wrong += c != first;
        ++products;
    }
    over = true;
    sender.join();
    EXPECT_EQ(wrong, 0);
    for (const auto& block : around)
        for (const int v : block) ASSERT_EQ(v, 7);
    EXPECT_TRUE(signal_was_seen());
}

}  // namespace
}  // namespace atelier
