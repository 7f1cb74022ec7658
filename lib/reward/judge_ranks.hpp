#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "comm/communicator.hpp"
#include "reward/messages.hpp"
#include "reward/pool.hpp"

namespace atelier::reward {

/// A generator's way to judges that are ranks of their own. A thread sends pictures and takes verdicts while this rank samples. Each
/// sample goes to the judge that has the fewest of this rank's samples; which one it is, and what arrives first, changes nothing in an
/// outcome. A judge that saw the signal to stop passes it on (core/signals.hpp, note_signal). What goes wrong on the way is thrown by
/// submit(), dimensions(), close() and the futures.
class JudgeRanks final : public Judging {
  public:
    /// `judges`: their ranks in the mailbox. `capacity`: of this rank's samples in work at once.
    JudgeRanks(std::unique_ptr<comm::Mailbox> mailbox, std::vector<int> judges, std::size_t capacity);
    /// Without close() the judges go on waiting: for a rank that fails, and then ends the job.
    ~JudgeRanks() override;
    JudgeRanks(const JudgeRanks&) = delete;
    JudgeRanks& operator=(const JudgeRanks&) = delete;

    /// Has the judges get ready, once. A stage that is complete already never calls it.
    void open();
    /// Every dimension that the judges know for a kind of prompt, lowest tier first. Waits until they are ready.
    const std::vector<std::string>& dimensions(const std::string& kind);
    std::future<Outcome> submit(Request request) override;
    std::size_t capacity() const override { return capacity_; }
    /// Nothing more is asked. Returns when all has been sent. `exit_code`: what the stage ended with.
    void close(int exit_code);

  private:
    struct Waiting {
        std::promise<Outcome> promise;
        std::size_t judge = 0;
    };
    void talk();
    void take(Message message);
    void post(int rank, const Message& message);
    void check_failure() const;

    std::unique_ptr<comm::Mailbox> mailbox_;
    std::vector<int> judges_;
    std::size_t capacity_;
    std::mutex mutex_;
    std::condition_variable has_post_, has_news_;
    std::deque<std::pair<int, std::vector<std::byte>>> post_;
    std::map<std::uint64_t, Waiting> waiting_;  ///< by ticket
    std::vector<std::size_t> in_work_;          ///< of each judge, this rank's
    std::optional<Dimensions> dimensions_;
    std::exception_ptr failure_;
    std::uint64_t next_ticket_ = 0;
    bool opened_ = false, closes_ = false, ends_ = false;
    std::thread thread_;
};

/// A judge rank's whole work: scores what the generators (ranks 0 to generators - 1 of the mailbox) send until each of them has closed;
/// returns the largest exit code that they named. `make_scorer` is called when the first one opens; `ready` then, with the scorer.
/// Holds at most workers + queue samples; others wait where they come from. Throws what the scorer's outcomes throw, like a Pool.
int serve_as_judge(comm::Mailbox& mailbox, int generators, const std::vector<std::string>& kinds, const PoolConfig& config,
                   const std::function<std::unique_ptr<Scorer>()>& make_scorer, const std::function<void(const Scorer&)>& ready);

}  // namespace atelier::reward
