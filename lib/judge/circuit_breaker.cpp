#include "judge/circuit_breaker.hpp"

namespace atelier::judge {
namespace {

auto seconds(double s) {
    return std::chrono::duration_cast<CircuitBreaker::Clock::duration>(
        std::chrono::duration<double>(s));
}

}  // namespace

CircuitBreaker::Advice CircuitBreaker::advise(Clock::time_point now) {
    const std::lock_guard lock(mutex_);
    if (!open_) return Advice::ask;
    if (trial_ || now < next_trial_) return has_lasted(now) ? Advice::give_up : Advice::wait;
    trial_ = true;
    return Advice::ask;
}

bool CircuitBreaker::has_lasted(Clock::time_point now) const { return open_ && now - opened_ >= seconds(config_.outage_seconds); }

bool CircuitBreaker::gives_up(Clock::time_point now) const {
    const std::lock_guard lock(mutex_);
    return has_lasted(now);
}

void CircuitBreaker::succeeded() {
    const std::lock_guard lock(mutex_);
    in_a_row_ = 0;
    open_ = trial_ = false;
}

void CircuitBreaker::failed(Clock::time_point now) {
    const std::lock_guard lock(mutex_);
    ++in_a_row_;
    if (open_ ? !trial_ : in_a_row_ < config_.failures) return;
    if (!open_) opened_ = now;
    open_ = true;
    trial_ = false;
    next_trial_ = now + seconds(config_.pause_seconds);
}

bool CircuitBreaker::is_open() const {
    const std::lock_guard lock(mutex_);
    return open_;
}

}  // namespace atelier::judge
