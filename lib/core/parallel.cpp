#include "core/parallel.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "core/error.hpp"

namespace atelier {
namespace {

thread_local int t_index = 0;
thread_local bool t_inside = false;

/// Lets the core's other hyperthread run for a moment.
void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/// One job at a time: a count, a grain and a function; each thread takes ranges of its own share, one after the other, then what is left of the
/// others': loops over the same rows find them in the cache of the core that wrote them. A worker that comes when nothing is left is not waited for: on a busy machine, and for short jobs, the caller does the work alone. So does
/// a second caller while the first has the workers: no lock is taken.
class Pool {
  public:
    explicit Pool(int threads) : shares_(static_cast<std::size_t>(threads)) {
        for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
    }
    ~Pool() {
        stop_.store(true, std::memory_order_relaxed);
        announce();
        for (auto& worker : workers_) worker.join();
    }
    int size() const { return static_cast<int>(workers_.size()) + 1; }

    /// False: another thread has the workers.
    bool run(std::int64_t count, std::int64_t grain, detail::RangeFunction function, void* context) {
        if (is_taken_.exchange(true, std::memory_order_acquire)) return false;
        grain_ = grain;
        function_ = function;
        context_ = context;
        error_ = nullptr;
        const std::int64_t ranges = (count + grain - 1) / grain, threads = size();
        for (std::int64_t i = 0; i < threads; ++i) {
            Share& share = shares_[static_cast<std::size_t>(i)];
            share.next.store(ranges * i / threads * grain, std::memory_order_relaxed);
            share.end = std::min(ranges * (i + 1) / threads * grain, count);
        }
        inside_.store(open, std::memory_order_release);
        announce();
        take_ranges();
        inside_.fetch_and(~open, std::memory_order_acq_rel);
        const auto all_out = [this] { return inside_.load(std::memory_order_acquire) == 0; };
        if (!comes_soon(all_out))
            while (!all_out()) std::this_thread::yield();
        const std::exception_ptr error = std::exchange(error_, nullptr);
        is_taken_.store(false, std::memory_order_release);
        if (error) std::rethrow_exception(error);
        return true;
    }

  private:
    // How long a thread stays awake for the next job, or the last one's end: step loops fork again within that time, and to wake a thread takes as long.
    static constexpr auto patience = std::chrono::microseconds(50);
    template <typename Condition>
    static bool comes_soon(const Condition& holds) {
        const auto end = std::chrono::steady_clock::now() + patience;
        do {
            for (int i = 0; i < 32; ++i) {
                if (holds()) return true;
                relax();
            }
        } while (std::chrono::steady_clock::now() < end);
        return false;
    }
    static constexpr std::uint32_t open = std::uint32_t{1} << 31;

    void announce() {
        jobs_.fetch_add(1, std::memory_order_release);
        jobs_.notify_all();
    }
    void take_ranges() {
        t_inside = true;
        try {
            for (std::size_t i = 0; i < shares_.size(); ++i) {
                Share& share = shares_[(static_cast<std::size_t>(t_index) + i) % shares_.size()];
                for (;;) {
                    const std::int64_t begin = share.next.fetch_add(grain_, std::memory_order_relaxed);
                    if (begin >= share.end) break;
                    function_(context_, begin, std::min(begin + grain_, share.end));
                }
            }
        } catch (...) {
            std::lock_guard lock(error_mutex_);
            if (!error_) error_ = std::current_exception();
        }
        t_inside = false;
    }
    /// One more inside, if the job is still open; only then may its fields be read.
    bool enter() {
        std::uint32_t found = inside_.load(std::memory_order_relaxed);
        while ((found & open) != 0)
            if (inside_.compare_exchange_weak(found, found + 1, std::memory_order_acquire, std::memory_order_relaxed)) return true;
        return false;
    }
    void work(int index) {
        t_index = index;
        std::uint32_t seen = 0;
        for (;;) {
            if (!comes_soon([&] { return jobs_.load(std::memory_order_acquire) != seen; })) jobs_.wait(seen, std::memory_order_acquire);
            seen = jobs_.load(std::memory_order_acquire);
            if (stop_.load(std::memory_order_relaxed)) return;
            if (!enter()) continue;
            take_ranges();
            inside_.fetch_sub(1, std::memory_order_release);
        }
    }

    struct alignas(64) Share {
        std::atomic<std::int64_t> next{0};
        std::int64_t end = 0;
    };
    std::vector<Share> shares_;  ///< by thread
    std::vector<std::thread> workers_;
    std::mutex error_mutex_;
    std::atomic<bool> is_taken_{false};     ///< by a caller
    std::atomic<std::uint32_t> jobs_{0};    ///< announced so far
    std::atomic<std::uint32_t> inside_{0};  ///< workers in the present job; `open` while others may come
    std::atomic<bool> stop_{false};
    std::int64_t grain_ = 1;
    detail::RangeFunction function_ = nullptr;
    void* context_ = nullptr;
    std::exception_ptr error_;
};

std::unique_ptr<Pool>& pool() {
    static std::unique_ptr<Pool> instance = std::make_unique<Pool>(1);
    return instance;
}

}  // namespace

void set_threads(int threads) {
    ATELIER_CHECK_USAGE(threads >= 1 && threads <= 1024, "threads must lie in [1, 1024], found {}", threads);
    if (threads != pool()->size()) {
        pool().reset();
        pool() = std::make_unique<Pool>(threads);
    }
}

int threads() { return pool()->size(); }
int free_threads() { return t_inside ? 1 : threads(); }
int thread_index() { return t_index; }

namespace detail {
void run_parallel(std::int64_t count, std::int64_t grain, RangeFunction function, void* context) {
    if (count <= 0) return;
    grain = std::max<std::int64_t>(grain, 1);
    if (free_threads() > 1 && count > grain && pool()->run(count, grain, function, context)) return;
    // The same ranges as the pool would hand out, in order.
    for (std::int64_t begin = 0; begin < count; begin += grain) function(context, begin, std::min(begin + grain, count));
}
}  // namespace detail

}  // namespace atelier
