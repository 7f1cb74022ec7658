#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <regex>
#include <string>

#include "io/report/event_file.hpp"
#include "io/report/html.hpp"
#include "io/report/plot.hpp"

namespace atelier::io {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

std::string bytes_of(std::string_view hexadecimal) {
    std::string bytes;
    for (std::size_t i = 0; i < hexadecimal.size(); i += 2) bytes += static_cast<char>(std::stoi(std::string(hexadecimal.substr(i, 2)), nullptr, 16));
    return bytes;
}

int count(const std::string& text, const std::string& what) {
    int n = 0;
    for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++n;
    return n;
}

TEST(EventFile, IsWhatTensorBoardsOwnWriterWrites) {
    // tensorboard 2.21: summary.writer.record_writer.RecordWriter with the same four events.
    const std::string expected = bytes_of(
        "1800000000000000a37f4b2209000020cf5dc3da411a0d627261696e2e4576656e743a32f4019b9f0d000000000000003c37b83409000020cf5dc3da"
        "413a0208015c4284e4220000000000000078113dfd09000020cf5dc3da4110032a150a130a0c7265776172642f746f74616c1500002040e4092c4123"
        "00000000000000b09f774309000000e75dc3da4110ac022a150a130a0c7265776172642f746f74616c15cdccccbdd45dfe03");
    const std::array scalars{Scalar{"reward/total", 3, 1796044604.5, 2.5}, Scalar{"reward/total", 300, 1796044700.0, -0.1}};
    EXPECT_EQ(event_file(scalars), expected);
    EXPECT_TRUE(expected.starts_with(event_file(std::span(scalars).first(1)))) << "more points are more bytes at the end";
}

TEST(Html, TextsStayTexts) {
    EXPECT_EQ(escape_html("<img src=x onerror='a()'> & \"b\"\x01"), "&lt;img src=x onerror=&#39;a()&#39;&gt; &amp; &quot;b&quot; ");
    EXPECT_EQ(escape_html("ä\n字"), "ä\n字");
    EXPECT_EQ(address_of("a b%?#\"ü/c.png"), "a%20b%25%3F%23%22%C3%BC/c.png");
}

TEST(Plot, TicksAreRoundNumbersWithinTheAxis) {
    EXPECT_THAT(axis_ticks(0, 10, 5), ElementsAre(0, 2, 4, 6, 8, 10));
    EXPECT_THAT(axis_ticks(1, 6, 5), ElementsAre(1, 2, 3, 4, 5, 6));
    EXPECT_THAT(axis_ticks(-0.12, 0.31, 4), ElementsAre(::testing::DoubleNear(0, 1e-12), ::testing::DoubleNear(0.2, 1e-12)));
    EXPECT_THAT(axis_ticks(3, 3, 5), ElementsAre(3));
    for (const double scale : {1e-9, 1e-3, 1., 1e7}) EXPECT_EQ(axis_ticks(0, scale, 5).size(), 6u) << scale;
}

TEST(Plot, ALineEndsWhereANumberIsMissing) {
    const Plot plot{"<loss>", "update", {{"a", {{1, 2}, {2, 3}, {3, NAN}, {4, 5}, {5, 6}, {6, INFINITY}}}, {"b & c", {{1, 4, 3, 5}, {2, 4.5, 3.5, 5.5}}}}};
    const std::string svg = svg_of(plot);
    EXPECT_EQ(count(svg, "<polyline"), 3) << "two pieces of a, one of b";
    EXPECT_EQ(count(svg, "<polygon"), 1) << "b alone has a band";
    EXPECT_EQ(count(svg, "<circle"), 6);
    EXPECT_THAT(svg, HasSubstr("&lt;loss&gt;"));
    EXPECT_THAT(svg, HasSubstr("b &amp; c at 2: 4.5 [3.5, 5.5]"));
    EXPECT_THAT(svg, Not(HasSubstr("nan")));
    EXPECT_THAT(svg, Not(HasSubstr("inf")));
    const std::string empty = svg_of(Plot{"x", "y", {{"a", {{1, NAN}}}}});
    EXPECT_THAT(empty, HasSubstr("nothing to show yet"));
    EXPECT_THAT(svg_of(Plot{"constant", "y", {{"a", {{1, 0}, {2, 0}}}}}), Not(HasSubstr("nan")));
    const std::array both{plot, plot};
    EXPECT_EQ(count(svg_of(both), "<polyline"), 6);
    EXPECT_EQ(count(svg_of(both), "<svg"), 1);
}

/// Where the circle of a row stands, in pixels.
std::vector<double> places(const std::string& svg) {
    std::vector<double> found;
    const std::regex circle("<circle cx=\"([0-9.]+)\"");
    for (auto at = std::sregex_iterator(svg.begin(), svg.end(), circle); at != std::sregex_iterator(); ++at) found.push_back(std::stod((*at)[1]));
    return found;
}

TEST(Plot, IntervalsStandInProportion) {
    const std::string scores = svg_of(IntervalPlot{"scores", {{"base", 2, 1, 3}, {"student", 4, 3, 5, 1}}});
    const auto x = places(scores);
    ASSERT_EQ(x.size(), 2u);
    EXPECT_LT(x[0], x[1]);
    EXPECT_THAT(scores, HasSubstr("4.00 [3.00, 5.00]"));
    const std::string gains = svg_of(IntervalPlot{"gains", {{"student", 0.5, 0.25, 0.75}}, 2, true});
    EXPECT_THAT(gains, HasSubstr("+0.50 [+0.25, +0.75]"));
    EXPECT_THAT(gains, HasSubstr(">0</text>")) << "0 is on the axis of differences";
    EXPECT_THAT(svg_of(IntervalPlot{"none", {}}), HasSubstr("</svg>"));
}

TEST(Plot, SpansOfARowStandBesideEachOther) {
    const std::string svg = svg_of(SpanPlot{"jobs", {{"grpo", "grpo-1", 100, 160}, {"rollout", "rollout-1", 40, 100}, {"grpo", "grpo-2", 200, 300}}});
    EXPECT_EQ(count(svg, "<rect"), 3);
    EXPECT_EQ(count(svg, ">grpo</text>"), 1);
    EXPECT_THAT(svg, HasSubstr("grpo-2, 100 s"));
    EXPECT_THAT(svg, HasSubstr(">4 min</text>")) << "260 s in minutes";
}

}  // namespace
}  // namespace atelier::io
