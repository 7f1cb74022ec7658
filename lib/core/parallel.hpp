#pragma once

#include <cstdint>
#include <type_traits>

namespace atelier {

/// Threads of this process for `parallel_for`: 1 until set. Results never depend on it: work is
/// cut by index, each index computes the same bits on any thread, and reductions over indices are
/// done by the caller in index order over blocks of fixed size.
void set_threads(int threads);
int threads();
/// How many of them a parallel_for would have here: 1 inside another one.
int free_threads();
/// Index of the calling thread within the pool, 0 <= index < threads(). For per-thread scratch.
int thread_index();

namespace detail {
using RangeFunction = void (*)(void* context, std::int64_t begin, std::int64_t end);
void run_parallel(std::int64_t count, std::int64_t grain, RangeFunction function, void* context);
}  // namespace detail

/// Calls `body(begin, end)` over disjoint ranges that cover [0, count), ranges of `grain` indices
/// handed out dynamically, each thread's own share of [0, count) first. Runs serially inside another parallel_for. An exception thrown by a body
/// is rethrown here after all threads are done. Does not allocate.
template <typename Body>
void parallel_for(std::int64_t count, std::int64_t grain, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    detail::run_parallel(
        count, grain,
        [](void* context, std::int64_t begin, std::int64_t end) {
            (*static_cast<Plain*>(context))(begin, end);
        },
        const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace atelier
