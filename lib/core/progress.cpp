#include "core/progress.hpp"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <ctime>

namespace atelier {
namespace {

constexpr auto terminal_interval = std::chrono::milliseconds(200);
constexpr auto log_interval = std::chrono::seconds(10);

}  // namespace

void log_line(const std::string& text) {
    const std::string line = fmt::format("{:%H:%M:%S} {}\n", fmt::gmtime(std::time(nullptr)), text);
    std::fwrite(line.data(), 1, line.size(), stderr);
}

Progress::Progress(std::string what, std::string unit, std::int64_t total, bool silent)
    : what_(std::move(what)),
      unit_(std::move(unit)),
      total_(total),
      silent_(silent),
      terminal_(isatty(STDERR_FILENO) == 1),
      begin_(Clock::now()),
      last_(begin_) {}

Progress::~Progress() {
    if (!silent_ && done_ > first_) print(true);
}

void Progress::start_at(std::int64_t done) {
    first_ = done_ = done;
    begin_ = Clock::now();
}

void Progress::update(std::int64_t done) {
    done_ = done;
    const auto now = Clock::now();
    if (silent_ || (printed_ && now - last_ < (terminal_ ? Clock::duration(terminal_interval)
                                                         : Clock::duration(log_interval))))
        return;
    last_ = now;
    print(false);
}

void Progress::print(bool last) {
    const double seconds = std::chrono::duration<double>(Clock::now() - begin_).count();
    const double rate = seconds > 0 ? static_cast<double>(done_ - first_) / seconds : 0;
    std::string text = fmt::format("{}: {} of {} {}", what_, done_, total_, unit_);
    if (rate > 0) text += fmt::format(", {:.1f} a second", rate);
    if (last)
        text += fmt::format(", {:.1f} s", seconds);
    else if (rate > 0)
        text += fmt::format(", {:.0f} s left", static_cast<double>(total_ - done_) / rate);
    if (terminal_) {
        std::fprintf(stderr, "\r\033[K%s%s", text.c_str(), last ? "\n" : "");
        std::fflush(stderr);
    } else {
        log_line(text);
    }
    printed_ = true;
}

}  // namespace atelier
