#include "reward/judge_ranks.hpp"

#include <algorithm>
#include <chrono>
#include <list>
#include <utility>

#include "core/error.hpp"
#include "core/signals.hpp"

namespace atelier::reward {
namespace {

// MPI's own waiting spins; these leave the core to those who compute.
constexpr auto pause_in_work = std::chrono::milliseconds(1);
constexpr auto pause_idle = std::chrono::milliseconds(10);

}  // namespace

JudgeRanks::JudgeRanks(std::unique_ptr<comm::Mailbox> mailbox, std::vector<int> judges, std::size_t capacity)
    : mailbox_(std::move(mailbox)), judges_(std::move(judges)), capacity_(capacity), in_work_(judges_.size()) {
    ATELIER_CHECK(!judges_.empty() && capacity_ >= 1, "{} judges for {} samples", judges_.size(), capacity_);
    const SignalsBlocked blocked;
    thread_ = std::thread([this] { talk(); });
}

JudgeRanks::~JudgeRanks() {
    {
        const std::lock_guard lock(mutex_);
        ends_ = true;
    }
    has_post_.notify_all();
    if (thread_.joinable()) thread_.join();
}

void JudgeRanks::open() {
    {
        const std::lock_guard lock(mutex_);
        check_failure();
        if (opened_) return;
        opened_ = true;
        for (const int judge : judges_) post(judge, {MessageKind::open});
    }
    has_post_.notify_all();
}

const std::vector<std::string>& JudgeRanks::dimensions(const std::string& kind) {
    std::unique_lock lock(mutex_);
    has_news_.wait(lock, [&] { return dimensions_ || failure_; });
    check_failure();
    const auto found = dimensions_->find(kind);
    ATELIER_CHECK(found != dimensions_->end(), "the judges were not asked about tasks of kind {}", kind);
    return found->second;
}

std::future<Outcome> JudgeRanks::submit(Request request) {
    std::unique_lock lock(mutex_);
    has_news_.wait(lock, [&] { return waiting_.size() < capacity_ || failure_; });
    check_failure();
    const auto judge = static_cast<std::size_t>(std::min_element(in_work_.begin(), in_work_.end()) - in_work_.begin());
    ++in_work_[judge];
    Message message{MessageKind::request, next_ticket_++};
    message.request = std::move(request);
    Waiting& waiting = waiting_[message.ticket];
    waiting.judge = judge;
    auto future = waiting.promise.get_future();
    post(judges_[judge], message);
    lock.unlock();
    has_post_.notify_all();
    return future;
}

void JudgeRanks::close(int exit_code) {
    {
        const std::lock_guard lock(mutex_);
        check_failure();
        Message message{MessageKind::close};
        message.exit_code = exit_code;
        for (const int judge : judges_) post(judge, message);
        closes_ = true;
    }
    has_post_.notify_all();
    thread_.join();
    check_failure();
}

void JudgeRanks::post(int rank, const Message& message) { post_.emplace_back(rank, encode(message)); }

void JudgeRanks::check_failure() const {
    if (failure_) std::rethrow_exception(failure_);
}

void JudgeRanks::take(Message message) {
    if (message.kind == MessageKind::stop) return note_signal();
    std::unique_lock lock(mutex_);
    if (message.kind == MessageKind::opened) {
        // Every judge says so; callers hold on to what the first one said.
        ATELIER_CHECK(!dimensions_ || *dimensions_ == message.dimensions, "two judges score different dimensions");
        if (!dimensions_) dimensions_ = std::move(message.dimensions);
    } else {
        ATELIER_CHECK(message.kind == MessageKind::outcome, "a judge sent message {}", static_cast<int>(message.kind));
        const auto found = waiting_.find(message.ticket);
        ATELIER_CHECK(found != waiting_.end(), "a judge answered what was not asked");
        --in_work_[found->second.judge];
        found->second.promise.set_value(std::move(message.outcome));
        waiting_.erase(found);
    }
    lock.unlock();
    has_news_.notify_all();
}

void JudgeRanks::talk() {
    try {
        for (;;) {
            std::unique_lock lock(mutex_);
            has_post_.wait_for(lock, waiting_.empty() ? pause_idle : pause_in_work, [&] { return !post_.empty() || ends_; });
            if (ends_) return;
            const auto letters = std::exchange(post_, {});
            const bool closes = closes_;
            lock.unlock();
            for (const auto& [rank, bytes] : letters) mailbox_->send(rank, bytes);
            while (auto letter = mailbox_->receive()) take(decode(letter->bytes));
            if (mailbox_->sending() == 0 && closes) return;
        }
    } catch (...) {
        const std::lock_guard lock(mutex_);
        failure_ = std::current_exception();
        for (auto& [ticket, waiting] : waiting_) waiting.promise.set_exception(failure_);
        waiting_.clear();
    }
    has_news_.notify_all();
}

int serve_as_judge(comm::Mailbox& mailbox, int generators, const std::vector<std::string>& kinds, const PoolConfig& config,
                   const std::function<std::unique_ptr<Scorer>()>& make_scorer, const std::function<void(const Scorer&)>& ready) {
    struct InWork {
        int generator;
        std::uint64_t ticket;
        std::future<Outcome> outcome;
    };
    std::unique_ptr<Scorer> scorer;
    std::unique_ptr<Pool> pool;
    std::list<InWork> in_work;
    std::vector<bool> is_open(static_cast<std::size_t>(generators), true);
    const auto everyone = [&](const Message& message) {
        for (int g = 0; g < generators; ++g)
            if (is_open[static_cast<std::size_t>(g)]) mailbox.send(g, encode(message));
    };
    int code = 0;
    bool passed_on = false;
    const auto take = [&](const comm::Mailbox::Message& letter) {
        Message message = decode(letter.bytes);
        if (message.kind == MessageKind::close) {
            is_open[static_cast<std::size_t>(letter.source)] = false;
            code = std::max(code, message.exit_code);
            return;
        }
        if (!scorer) {
            scorer = make_scorer();
            pool = std::make_unique<Pool>(*scorer, config);
            ready(*scorer);
            Message opened{MessageKind::opened};
            for (const std::string& kind : kinds) opened.dimensions[kind] = scorer->dimensions(kind);
            everyone(opened);
        }
        if (message.kind == MessageKind::request)
            in_work.push_back({letter.source, message.ticket, pool->submit(std::move(message.request))});
    };
    const auto capacity = static_cast<std::size_t>(config.workers) + static_cast<std::size_t>(config.queue);
    while (!in_work.empty() || mailbox.sending() > 0 || std::find(is_open.begin(), is_open.end(), true) != is_open.end()) {
        bool moved = false;
        while (in_work.size() < capacity) {
            const auto letter = mailbox.receive();
            if (!letter) break;
            take(*letter);
            moved = true;
        }
        for (auto w = in_work.begin(); w != in_work.end();) {
            if (w->outcome.wait_for(std::chrono::seconds(0)) != std::future_status::ready) {
                ++w;
                continue;
            }
            Message answer{MessageKind::outcome, w->ticket};
            answer.outcome = w->outcome.get();
            mailbox.send(w->generator, encode(answer));
            w = in_work.erase(w);
            moved = true;
        }
        if (signal_was_seen() && !passed_on) {
            passed_on = true;
            everyone({MessageKind::stop});
        }
        if (!moved) std::this_thread::sleep_for(in_work.empty() ? pause_idle : pause_in_work);
    }
    return code;
}

}  // namespace atelier::reward
