#include "stage/timeline.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

#include "core/error.hpp"
#include "core/json.hpp"
#include "core/process.hpp"
#include "io/image/bitmap_font.hpp"
#include "io/image/png.hpp"
#include "io/file_io.hpp"
#include "io/publish.hpp"
#include "stage/gather.hpp"

namespace atelier::stage {
namespace {

using Json = nlohmann::json;

Json event_of(const Span& s) {
    Json event{{"name", s.what}, {"ph", "X"}, {"pid", s.rank}, {"tid", s.worker + 1}, {"ts", std::round(s.begin * 1e6)},
               {"dur", std::round(s.seconds * 1e6)}, {"args", {{"group", s.group}}}};
    if (s.sample >= 0) event["args"]["sample"] = s.sample;
    return event;
}

std::string row_name(int rank, int worker) {
    return worker < 0 ? fmt::format("rank {}", rank) : fmt::format("rank {} judge {}", rank, worker);
}

}  // namespace

Timeline::Measure::~Measure() {
    timeline.add({what, process().rank, -1, begin, seconds_since_1970() - begin, group});
}

void Timeline::publish(comm::Communicator& world, const std::filesystem::path& directory) const {
    Json mine = Json::array();
    for (const Span& s : spans_) mine.push_back(event_of(s));
    auto all = gather_json(world, mine);
    if (!world.is_root()) return;
    Json events = Json::array();
    for (Json& part : all)
        for (Json& event : part) events.push_back(std::move(event));
    if (events.empty()) return;  // all was there already: what stands there says how it came about
    const auto key = [](const Json& e) { return std::tuple(e["pid"].get<int>(), e["tid"].get<int>(), e["ts"].get<double>()); };
    std::sort(events.begin(), events.end(), [&](const Json& a, const Json& b) { return key(a) < key(b); });
    std::map<std::pair<int, int>, bool> rows;
    for (const Json& e : events) rows[{e["pid"].get<int>(), e["tid"].get<int>()}] = true;
    Json names = Json::array();
    for (const auto& [row, there] : rows)
        names.push_back({{"name", "thread_name"}, {"ph", "M"}, {"pid", row.first}, {"tid", row.second},
                         {"args", {{"name", row_name(row.first, row.second - 1)}}}});
    std::string lines = "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n";
    for (const Json& e : names) lines += e.dump() + ",\n";
    for (std::size_t i = 0; i < events.size(); ++i) lines += events[i].dump() + (i + 1 < events.size() ? ",\n" : "\n");
    io::publish_text(directory / timeline_name, lines + "]}\n");
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
                            {"gather", 214, 96, 77},    {"publish", 120, 120, 120}, {"judging", 92, 160, 88}};

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
    for (double t = 0; t <= end - begin + 1e-9; t += step) {
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
