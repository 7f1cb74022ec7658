#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace atelier {

/// How far a stage is, on standard error: one line that is rewritten on a terminal, plain lines
/// every few seconds in a job's log. Says done, total, rate and the time left. A silent one says
/// nothing (ranks other than 0).
class Progress {
  public:
    /// `what`: "rollout t2i 3"; `unit`: "samples".
    Progress(std::string what, std::string unit, std::int64_t total, bool silent);
    ~Progress();
    Progress(const Progress&) = delete;
    Progress& operator=(const Progress&) = delete;
    /// `done` of the total; what was done before the stage began this time does not count for the
    /// rate.
    void start_at(std::int64_t done);
    void update(std::int64_t done);

  private:
    void print(bool last);
    using Clock = std::chrono::steady_clock;
    std::string what_, unit_;
    std::int64_t total_, first_ = 0, done_ = 0;
    bool silent_, terminal_, printed_ = false;
    Clock::time_point begin_, last_;
};

/// One plain line on standard error with the time of day in UTC.
void log_line(const std::string& text);

}  // namespace atelier
