#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "comm/communicator.hpp"
#include "core/clock.hpp"
#include "io/image/image.hpp"

namespace atelier::stage {

/// What a rank, or one of its scoring threads, was busy with.
struct Span {
    std::string what;              ///< sampling, decode, device wait, hand over, gather, publish; judging
    int rank = 0;                  ///< of the job
    int worker = -1;               ///< scoring thread from 0; -1: the rank itself
    double begin = 0, seconds = 0;  ///< begin in seconds since 1970
    std::int64_t group = 0;        ///< of the stage, from 0
    std::int64_t sample = -1;      ///< of the stage; -1: the whole group
};

inline constexpr const char* timeline_name = "timeline.json";

/// Spans of a stage, as they pass.
class Timeline {
  public:
    /// Spans of a stage that are kept, of all ranks: the first ones.
    static constexpr std::size_t most_spans = 65'536;
    void add(Span span);
    /// Runs `body` and notes how long it took.
    template <typename Body>
    auto measure(const char* what, std::int64_t group, const Body& body) {
        const Measure measure{*this, what, group, seconds_since_1970()};
        return body();
    }
    /// Writes the spans of all ranks, in order of rank, worker and time, on rank 0, if there are any, and how many were left out; all ranks call it. The form is Chrome's trace events,
    /// which Perfetto shows too: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
    void publish(comm::Communicator& world, const std::filesystem::path& directory) const;

  private:
    struct Measure {
        Timeline& timeline;
        const char* what;
        std::int64_t group;
        double begin;
        ~Measure();
    };
    std::vector<Span> spans_;
    std::size_t left_out_ = 0;
};

/// Reads what Timeline::publish wrote. Throws Error(input) naming the file.
std::vector<Span> read_timeline(const std::filesystem::path& path);

/// A row for each rank and each of its scoring threads, time to the right in seconds since the first span, a colour for each kind of span.
io::Image draw_timeline(const std::vector<Span>& spans);

/// Draws a stage's directory's timeline into a PNG. Throws Error(input) where there is none.
void write_timeline(const std::filesystem::path& directory, const std::filesystem::path& png);

}  // namespace atelier::stage
