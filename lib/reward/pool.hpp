#pragma once

#include <condition_variable>
#include <deque>
#include <future>
#include <mutex>
#include <thread>
#include <vector>

#include "reward/scorer.hpp"

namespace atelier::reward {

/// What became of one sample.
struct Outcome {
    Verdicts
        verdicts;  ///< every dimension of the kind; all absent, with the reason, after a failure
    bool failed = false;  ///< no attempt succeeded
    int attempts = 0;
    double seconds = 0;  ///< of scoring, all attempts and the waits between them
    double begin = 0;    ///< when it began, seconds since 1970
    int rank = 0;        ///< which rank scored it, and which of its threads, from 0
    int worker = 0;
};

/// Where samples are handed in and scored while others are sampled: threads of this rank (Pool), or
/// ranks of their own (JudgeRanks).
class Judging {
  public:
    virtual ~Judging() = default;
    /// Blocks while capacity() samples are in work. The future holds an Outcome, or the error that
    /// ends the stage.
    virtual std::future<Outcome> submit(Request request) = 0;
    /// Samples of this rank that may be in work at once.
    virtual std::size_t capacity() const = 0;
};

struct PoolConfig {
    int workers = 2;              ///< samples scored at once
    int queue = 64;               ///< samples waiting at most; submit() blocks above it
    int retries = 2;              ///< further attempts after a failed one, unless the scorer does so
    double retry_seconds = 0.05;  ///< before the first repetition, doubled each time
};

/// Scores samples on threads of its own beside the sampling. Which thread scores a sample changes
/// nothing in its outcome.
class Pool final : public Judging {
  public:
    /// The scorer must outlive the pool. Throws Error(usage) for a pool without workers or queue.
    Pool(const Scorer& scorer, const PoolConfig& config);
    /// Ends the workers; samples still waiting are given up.
    ~Pool() override;
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    /// Blocks while the queue is full. The future holds an Outcome, or Error(numeric) for a present
    /// score that is not a number within [1, 5]: a broken scorer must not be taken for a missing
    /// score.
    std::future<Outcome> submit(Request request) override;
    std::size_t capacity() const override {
        return static_cast<std::size_t>(config_.workers) + static_cast<std::size_t>(config_.queue);
    }

  private:
    struct Task {
        Request request;
        std::promise<Outcome> promise;
    };
    void work(int worker);
    Outcome run(const Request& request, int worker) const;

    const Scorer& scorer_;
    PoolConfig config_;
    std::mutex mutex_;
    std::condition_variable has_work_, has_room_;
    std::deque<Task> tasks_;
    bool ends_ = false;
    std::vector<std::thread> threads_;
};

}  // namespace atelier::reward
