#include "reward/pool.hpp"

#include <chrono>
#include <cmath>

#include "core/clock.hpp"
#include "core/error.hpp"
#include "core/process.hpp"
#include "core/signals.hpp"

namespace atelier::reward {

Pool::Pool(const Scorer& scorer, const PoolConfig& config) : scorer_(scorer), config_(config) {
    ATELIER_CHECK_USAGE(
        config.workers >= 1 && config.queue >= 1 && config.retries >= 0,
        "a reward pool needs at least one worker and one place in its queue, found {} and {}",
        config.workers, config.queue);
    const SignalsBlocked blocked;
    for (int i = 0; i < config.workers; ++i) threads_.emplace_back([this, i] { work(i); });
}

Pool::~Pool() {
    {
        const std::lock_guard lock(mutex_);
        ends_ = true;
        tasks_.clear();
    }
    has_work_.notify_all();
    scorer_.interrupt();
    for (std::thread& thread : threads_) thread.join();
}

std::future<Outcome> Pool::submit(Request request) {
    std::unique_lock lock(mutex_);
    has_room_.wait(lock, [&] { return tasks_.size() < static_cast<std::size_t>(config_.queue); });
    tasks_.push_back({std::move(request), {}});
    auto future = tasks_.back().promise.get_future();
    lock.unlock();
    has_work_.notify_one();
    return future;
}

void Pool::work(int worker) {
    for (;;) {
        std::unique_lock lock(mutex_);
        has_work_.wait(lock, [&] { return ends_ || !tasks_.empty(); });
        if (ends_) return;
        Task task = std::move(tasks_.front());
        tasks_.pop_front();
        lock.unlock();
        has_room_.notify_one();
        try {
            task.promise.set_value(run(task.request, worker));
        } catch (...) {
            task.promise.set_exception(std::current_exception());
        }
    }
}

Outcome Pool::run(const Request& request, int worker) const {
    const auto begin = std::chrono::steady_clock::now();
    const auto& dimensions = scorer_.dimensions(request.kind);
    const int retries = scorer_.retries_itself() ? 0 : config_.retries;
    Outcome outcome;
    outcome.begin = seconds_since_1970();
    outcome.rank = process().rank;
    outcome.worker = worker;
    std::string why;
    for (; outcome.attempts <= retries; ++outcome.attempts) {
        if (outcome.attempts > 0)
            std::this_thread::sleep_for(std::chrono::duration<double>(
                std::ldexp(config_.retry_seconds, outcome.attempts - 1)));
        try {
            outcome.verdicts = scorer_.score(request, outcome.attempts);
        } catch (const Error& e) {
            why = e.message();
            continue;
        }
        for (const auto& [name, v] : outcome.verdicts)
            ATELIER_CHECK_KIND(ErrorKind::numeric, !v.present || (v.score >= 1 && v.score <= 5),
                               "{} of sample {} is scored {}: a score lies within 1 and 5", name,
                               request.sample_id, v.score);
        ++outcome.attempts;
        outcome.seconds =
            std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
        for (const std::string& name : dimensions)
            outcome.verdicts.try_emplace(name, Verdict{false, 1, "not scored"});
        return outcome;
    }
    outcome.failed = true;
    if (retries > 0) why = fmt::format("failed after {} attempts: {}", outcome.attempts, why);
    for (const std::string& name : dimensions) outcome.verdicts[name] = {false, 1, why};
    outcome.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    return outcome;
}

}  // namespace atelier::reward
