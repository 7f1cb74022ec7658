#include "core/parallel.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "core/error.hpp"

namespace atelier {
namespace {

thread_local int t_index = 0;
thread_local bool t_inside = false;

/// One job at a time: a count, a grain and a function; workers and the caller take ranges from a
/// shared counter until none is left.
class Pool {
  public:
    explicit Pool(int threads) {
        for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
    }
    ~Pool() {
        {
            std::lock_guard lock(mutex_);
            stop_ = true;
            ++generation_;
        }
        wake_.notify_all();
        for (auto& worker : workers_) worker.join();
    }
    int size() const { return static_cast<int>(workers_.size()) + 1; }

    void run(std::int64_t count, std::int64_t grain, detail::RangeFunction function, void* context) {
        std::lock_guard serial(callers_);
        {
            std::lock_guard lock(mutex_);
            count_ = count;
            grain_ = grain;
            function_ = function;
            context_ = context;
            error_ = nullptr;
            next_.store(0, std::memory_order_relaxed);
            busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
            generation_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        take_ranges();
        for (int spin = 0; busy_.load(std::memory_order_acquire) != 0; ++spin) {
            if (spin > spins) std::this_thread::yield();
        }
        if (error_) std::rethrow_exception(error_);
    }

  private:
    // About 20 µs of spinning before a worker sleeps: step loops fork again within that time.
    static constexpr int spins = 4000;

    void take_ranges() {
        t_inside = true;
        try {
            for (;;) {
                const std::int64_t begin = next_.fetch_add(grain_, std::memory_order_relaxed);
                if (begin >= count_) break;
                function_(context_, begin, std::min(begin + grain_, count_));
            }
        } catch (...) {
            std::lock_guard lock(error_mutex_);
            if (!error_) error_ = std::current_exception();
        }
        t_inside = false;
    }
    void work(int index) {
        t_index = index;
        std::uint64_t seen = 0;
        for (;;) {
            for (int spin = 0; generation_.load(std::memory_order_acquire) == seen && spin < spins; ++spin) {
            }
            {
                std::unique_lock lock(mutex_);
                wake_.wait(lock, [&] { return generation_.load() != seen; });
                seen = generation_.load();
                if (stop_) return;
            }
            take_ranges();
            busy_.fetch_sub(1, std::memory_order_release);
        }
    }

    std::vector<std::thread> workers_;
    std::mutex callers_, mutex_, error_mutex_;
    std::condition_variable wake_;
    std::atomic<std::uint64_t> generation_{0};
    std::atomic<std::int64_t> next_{0};
    std::atomic<int> busy_{0};
    bool stop_ = false;
    std::int64_t count_ = 0, grain_ = 1;
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
int thread_index() { return t_index; }

namespace detail {
void run_parallel(std::int64_t count, std::int64_t grain, RangeFunction function, void* context) {
    if (count <= 0) return;
    grain = std::max<std::int64_t>(grain, 1);
    if (t_inside || pool()->size() == 1 || count <= grain) {
        // The same ranges as the pool would hand out, in order.
        for (std::int64_t begin = 0; begin < count; begin += grain)
            function(context, begin, std::min(begin + grain, count));
        return;
    }
    pool()->run(count, grain, function, context);
}
}  // namespace detail

}  // namespace atelier
