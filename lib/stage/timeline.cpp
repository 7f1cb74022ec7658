#include "stage/timeline.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <map>
#include <set>
#include <tuple>

#include "core/error.hpp"
#include "core/json.hpp"
#include "core/process.hpp"
#include "io/image/bitmap_font.hpp"
#include "io/image/png.hpp"
#include "io/file_io.hpp"
#include "io/publish.hpp"

namespace atelier::stage {
namespace {

using Json = nlohmann::json;

/// A span between ranks.
struct SentSpan {
    char what[16];
    int rank, worker;
    double begin, seconds;
    std::int64_t group, sample;
};

SentSpan sent(const Span& s) {
    SentSpan out{{}, s.rank, s.worker, s.begin, s.seconds, s.group, s.sample};
    ATELIER_CHECK(s.what.size() < sizeof(out.what), "the span \"{}\" has a long name", s.what);
    std::copy(s.what.begin(), s.what.end(), out.what);
    return out;
}

std::string row_name(int rank, int worker) {
    return worker < 0 ? fmt::format("rank {}", rank) : fmt::format("rank {} judge {}", rank, worker);
}

}  // namespace

Timeline::Measure::~Measure() {
    timeline.add({what, process().rank, -1, begin, seconds_since_1970() - begin, group});
}

void Timeline::add(Span span) {
    if (spans_.size() < most_spans)
        spans_.push_back(std::move(span));
    else
        ++left_out_;
}

void Timeline::publish(comm::Communicator& world, const std::filesystem::path& directory) const {
    const std::size_t share = std::min(spans_.size(), most_spans / static_cast<std::size_t>(world.size()));
    std::vector<SentSpan> mine;
    for (std::size_t i = 0; i < share; ++i) mine.push_back(sent(spans_[i]));
    double left_out = static_cast<double>(left_out_ + spans_.size() - share);
    world.sum(std::span(&left_out, 1));
    std::vector<SentSpan> all;
    for (const auto& part : world.gather(std::as_bytes(std::span(mine)))) {
        const std::size_t before = all.size();
        all.resize(before + part.size() / sizeof(SentSpan));
        if (!part.empty()) std::memcpy(all.data() + before, part.data(), part.size());
    }
    if (all.empty() || !world.is_root()) return;  // empty: all was there already, what stands there says how it came about
    std::sort(all.begin(), all.end(),
              [](const SentSpan& a, const SentSpan& b) { return std::tuple(a.rank, a.worker, a.begin) < std::tuple(b.rank, b.worker, b.begin); });
    std::string lines = fmt::format("{{\"displayTimeUnit\": \"ms\", \"otherData\": {{\"left_out\": {}}}, \"traceEvents\": [\n", left_out);
    const auto out = std::back_inserter(lines);
    std::set<std::pair<int, int>> rows;
    for (const SentSpan& s : all)
        if (rows.emplace(s.rank, s.worker).second)
            fmt::format_to(out, R"({{"name": "thread_name", "ph": "M", "pid": {}, "tid": {}, "args": {{"name": "{}"}}}},{})", s.rank, s.worker + 1,
                           row_name(s.rank, s.worker), '\n');
    for (const SentSpan& s : all)
        fmt::format_to(out, R"({}{{"name": "{}", "ph": "X", "pid": {}, "tid": {}, "ts": {:.0f}, "dur": {:.0f}, "args": {{"group": {}{}}}}})",
                       &s == all.data() ? "" : ",\n", s.what, s.rank, s.worker + 1, s.begin * 1e6, s.seconds * 1e6, s.group,
                       s.sample >= 0 ? fmt::format(", \"sample\": {}", s.sample) : "");
    io::publish_text(directory / timeline_name, lines + "\n]}\n");
}

std::vector<Span> read_timeline(const std::filesystem::path& path) {
    std::vector<Span> spans;
    const Json events = parse_json(io::read_text(path), path.string());
    try {
        for (const Json& e : events.at("traceEvents")) {
            if (e.at("ph") != "X") continue;
            const Json& about = e.at("args");
            spans.push_back({e.at("name").get<std::string>(), e.at("pid").get<int>(), e.at("tid").get<int>() - 1, e.at("ts").get<double>() / 1e6,
                             e.at("dur").get<double>() / 1e6, about.at("group").get<std::int64_t>(), about.value("sample", std::int64_t{-1})});
        }
    } catch (const Json::exception& e) {
        ATELIER_FAIL(ErrorKind::input, "{} is no timeline: {}", path.string(), e.what());
    }
    return spans;
}

namespace {

struct Paint {
    const char* what;
    std::uint8_t red, green, blue;
};
// The first of these are the rank's own, the last its judges'; what else a file names is drawn in the last's colour.
constexpr Paint paints[] = {{"sampling", 66, 113, 174}, {"decode", 117, 172, 217},  {"hand over", 160, 120, 180},
                            {"gather", 214, 96, 77},    {"publish", 120, 120, 120}, {"device wait", 240, 190, 90}, {"judging", 92, 160, 88}};

const Paint& paint_of(const std::string& what) {
    for (const Paint& p : paints)
        if (what == p.what) return p;
    return paints[std::size(paints) - 1];
}

void fill(io::Image& image, int left, int top, int right, int bottom, std::uint8_t red, std::uint8_t green, std::uint8_t blue) {
    for (int y = std::max(0, top); y < std::min(image.height, bottom); ++y)
        for (int x = std::max(0, left); x < std::min(image.width, right); ++x) {
            std::uint8_t* p = image.at(x, y);
            p[0] = red, p[1] = green, p[2] = blue;
        }
}

/// A round number of seconds, so that at most a dozen marks stand on the axis.
double mark_distance(double seconds) {
    double step = 1e-3;
    for (int i = 0; seconds / step > 12; ++i) step *= i % 3 == 1 ? 2.5 : 2;
    return step;
}

}  // namespace

io::Image draw_timeline(const std::vector<Span>& spans) {
    ATELIER_CHECK_INPUT(!spans.empty(), "the timeline holds no span: nothing was sampled");
    std::map<std::pair<int, int>, int> rows;
    double begin = spans.front().begin, end = begin;
    for (const Span& s : spans) {
        rows[{s.rank, s.worker}] = 0;
        begin = std::min(begin, s.begin);
        end = std::max(end, s.begin + s.seconds);
    }
    constexpr int label = 17 * io::font_advance, plot = 1000, margin = 8, head = 2 * io::font_line_height + 12;
    const int pitch = rows.size() <= 80 ? 11 : 5;  // many rows: thinner, ranks alone named
    int next = head;
    for (auto& [row, top] : rows) top = next, next += row.second < 0 ? 14 : pitch;
    io::Image image(label + plot + 2 * margin, next + io::font_line_height + 10, 3, 255);
    const double scale = plot / std::max(1e-6, end - begin);
    const auto x_of = [&](double time) { return margin + label + static_cast<int>(std::lround((time - begin) * scale)); };
    const double step = mark_distance(end - begin);
    const auto marks = static_cast<int>((end - begin + 1e-9) / step);
    for (int mark = 0; mark <= marks; ++mark) {
        const double t = mark * step;
        const int x = x_of(begin + t);
        fill(image, x, head - 2, x + 1, next, 225, 225, 225);
        io::draw_text(image, fmt::format("{:g} s", std::round(t * 1e3) / 1e3), x + 2, next + 4, image.width, 1);
    }
    for (const auto& [row, top] : rows)
        if (row.second < 0 || pitch > 8) io::draw_text(image, row_name(row.first, row.second), margin, top + 1, margin + label, 1);
    for (const Span& s : spans) {
        const int top = rows.at({s.rank, s.worker}), left = x_of(s.begin);
        const Paint& p = paint_of(s.what);
        fill(image, left, top, std::max(left + 1, x_of(s.begin + s.seconds)), top + (s.worker < 0 ? 11 : pitch - 2), p.red, p.green, p.blue);
    }
    int x = margin + label;
    for (const Paint& p : paints) {
        if (std::none_of(spans.begin(), spans.end(), [&](const Span& s) { return s.what == p.what; })) continue;
        fill(image, x, 8, x + 10, 16, p.red, p.green, p.blue);
        io::draw_text(image, p.what, x + 14, 9, image.width, 1);
        x += 14 + (static_cast<int>(std::string_view(p.what).size()) + 3) * io::font_advance;
    }
    return image;
}

void write_timeline(const std::filesystem::path& directory, const std::filesystem::path& png) {
    const auto image = draw_timeline(read_timeline(std::filesystem::is_directory(directory) ? directory / timeline_name : directory));
    io::publish_file(png, [&](const std::filesystem::path& temporary) { io::write_png(temporary, image); });
}

}  // namespace atelier::stage
