// Timelines of a stage: what is written is read back, in order; the picture; files that are none.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <unistd.h>

#include <fstream>

#include "core/error.hpp"
#include "stage/timeline.hpp"

namespace atelier::stage {
namespace {

std::filesystem::path directory() {
    const auto path = std::filesystem::temp_directory_path() / ("atelier-timeline-" + std::to_string(getpid()));
    std::filesystem::create_directories(path);
    return path;
}

TEST(Timeline, IsReadBackInOrder) {
    const auto world = comm::make_self();
    const auto where = directory();
    Timeline().publish(*world, where);
    EXPECT_FALSE(std::filesystem::exists(where / timeline_name)) << "nothing was done: what stood there stays";
    Timeline timeline;
    const double now = 1.7e9 + 0.25;
    timeline.add({"judging", 1, 3, now + 1, 0.5, 2, 17});
    timeline.add({"judging", 1, 0, now + 2, 1.5, 2, 18});
    EXPECT_EQ(timeline.measure("sampling", 4, [] { return 7; }), 7);
    timeline.publish(*world, where);
    const auto spans = read_timeline(where / timeline_name);
    ASSERT_EQ(spans.size(), 3u);
    EXPECT_EQ(spans[0].what, "sampling");
    EXPECT_EQ(spans[0].worker, -1);
    EXPECT_EQ(spans[0].group, 4);
    EXPECT_EQ(spans[0].sample, -1);
    EXPECT_EQ(spans[1].worker, 0);
    EXPECT_EQ(spans[2].sample, 17);
    EXPECT_NEAR(spans[2].begin, now + 1, 1e-5);
    EXPECT_NEAR(spans[2].seconds, 0.5, 1e-5);
    std::filesystem::remove_all(where);
}

TEST(Timeline, OfALongStageKeepsItsBeginningAndSaysWhatIsMissing) {
    const auto world = comm::make_self();
    const auto where = directory();
    Timeline timeline;
    for (std::size_t i = 0; i < Timeline::most_spans + 3; ++i) timeline.add({"judging", 0, 0, static_cast<double>(i), 0.5, static_cast<std::int64_t>(i), -1});
    timeline.publish(*world, where);
    const auto spans = read_timeline(where / timeline_name);
    ASSERT_EQ(spans.size(), Timeline::most_spans);
    EXPECT_EQ(spans.back().group, static_cast<std::int64_t>(Timeline::most_spans) - 1);
    std::ifstream file(where / timeline_name);
    std::string first;
    std::getline(file, first);
    EXPECT_THAT(first, ::testing::HasSubstr("\"left_out\": 3"));
    std::filesystem::remove_all(where);
}

TEST(Timeline, IsDrawnByRankAndThread) {
    const auto image = draw_timeline({{"sampling", 0, -1, 100, 5, 0, -1}, {"judging", 1, 0, 105, 5, 0, 0}, {"gather", 0, -1, 105, 5, 0, -1}});
    // Left half of the first row in the sampling's colour, right half in the gathering's; the judge's row empty, then filled.
    const auto count = [&](int red, int left, int right) {
        int n = 0;
        for (int y = 28; y < image.height; ++y)
            for (int x = left; x < right; ++x) n += image.at(x, y)[0] == red ? 1 : 0;
        return n;
    };
    const int middle = 8 + 17 * 6 + 500, end = middle + 500;
    EXPECT_EQ(count(66, middle - 500, middle), 500 * 11);
    EXPECT_EQ(count(66, middle, end), 0);
    EXPECT_EQ(count(214, middle, end), 500 * 11);
    EXPECT_EQ(count(92, middle, end), 500 * 9);
    EXPECT_EQ(count(92, 0, middle), 0);
    EXPECT_THROW(draw_timeline({}), Error);
    std::vector<Span> many;
    for (int worker = 0; worker < 500; ++worker) many.push_back({"judging", 1, worker, 10.0 + worker, 3, 0, worker});
    EXPECT_LT(draw_timeline(many).height, 3000);
}

TEST(Timeline, NamesTheFileThatIsNone) {
    const auto where = directory();
    EXPECT_THAT([&] { read_timeline(where / "none.json"); }, testing::Throws<Error>(testing::Property(&Error::message, testing::HasSubstr("none.json"))));
    std::ofstream(where / "bad.json") << "{\"traceEvents\": [{\"ph\": \"X\"}]}";
    EXPECT_THAT([&] { read_timeline(where / "bad.json"); }, testing::Throws<Error>(testing::Property(&Error::exit_code, 3)));
    std::filesystem::remove_all(where);
}

}  // namespace
}  // namespace atelier::stage
