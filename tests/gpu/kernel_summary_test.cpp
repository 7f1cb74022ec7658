#include "gpu/kernel_summary.hpp"

#include <gtest/gtest.h>

namespace atelier::testing {
namespace {

TEST(KernelSummary, CountsBusyTimeOnceAndGapsBetween) {
    EXPECT_TRUE(summarise({}).kernels.empty());
    std::vector<DeviceWork> work{{"early", 0, 500'000}};
    // From 1 ms on: a gap of 1 us, two at once, a wait of 300 us.
    work.push_back({"b", 1'011'000, 1'021'000});
    work.push_back({"a", 1'000'000, 1'010'000});
    work.push_back({"a", 1'015'000, 1'031'000});
    work.push_back({"a", 1'331'000, 1'333'000});
    const KernelSummary s = summarise(work);
    ASSERT_EQ(s.kernels.size(), 2u);
    EXPECT_EQ(s.kernels[0].name, "a");
    EXPECT_EQ(s.kernels[0].count, 3);
    EXPECT_EQ(s.kernels[0].sum, 28'000);
    EXPECT_EQ(s.kernels[0].fastest, 2'000);
    EXPECT_EQ(s.kernels[1].sum, 10'000);
    EXPECT_EQ(s.busy, 10'000 + 20'000 + 2'000);
    EXPECT_EQ(s.gaps, 1'000);
    EXPECT_EQ(s.waits, 300'000);
}

}  // namespace
}  // namespace atelier::testing
