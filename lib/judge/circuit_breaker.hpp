#pragma once

#include <chrono>
#include <mutex>

namespace atelier::judge {

/// Leaves a server alone that has failed several times in a row: for a pause nobody asks, then one
/// may try; if that succeeds all go on, if it fails the next pause begins. After an outage that has
/// lasted too long everybody else gives up at once; trials go on, so that a server that comes back is used again. Times are arguments: nothing here waits.
class CircuitBreaker {
  public:
    using Clock = std::chrono::steady_clock;
    struct Config {
        int failures = 5;            ///< in a row, until the circuit opens
        double pause_seconds = 5;    ///< between trials while it is open
        double outage_seconds = 300;  ///< since it opened, until all but a trial give up
    };
    enum class Advice { ask, wait, give_up };

    explicit CircuitBreaker(const Config& config) : config_(config) {}
    /// Who is told to ask must report how it went.
    Advice advise(Clock::time_point now);
    void succeeded();
    void failed(Clock::time_point now);
    bool is_open() const;
    /// Whether the outage has lasted too long: a trial that fails is not to be waited for again.
    bool gives_up(Clock::time_point now) const;

  private:
    bool has_lasted(Clock::time_point now) const;  ///< locked
    Config config_;
    mutable std::mutex mutex_;
    int in_a_row_ = 0;
    bool open_ = false, trial_ = false;
    Clock::time_point opened_, next_trial_;
};

}  // namespace atelier::judge
