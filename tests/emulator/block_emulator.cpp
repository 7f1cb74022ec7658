#include "emulator/block_emulator.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <boost/context/fiber.hpp>
#include <boost/context/fixedsize_stack.hpp>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <vector>

#include "core/error.hpp"

emulator::Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
namespace {

namespace context = boost::context;
constexpr int warp_size = 32;
constexpr std::size_t stack_bytes = 64 << 10;

enum class State { ready, at_barrier, at_exchange, done };

struct Thread {
    context::fiber fiber;
    context::fiber* scheduler = nullptr;
    State state = State::ready;
    unsigned parity = 0;
    unsigned char slots[2][8] = {};
};

/// Hands the same stacks out again and again.
class StackPool {
  public:
    context::stack_context allocate() {
        if (free_.empty()) return source_.allocate();
        const context::stack_context stack = free_.back();
        free_.pop_back();
        return stack;
    }
    void deallocate(context::stack_context& stack) noexcept { free_.push_back(stack); }

  private:
    context::fixedsize_stack source_{stack_bytes};
    std::vector<context::stack_context> free_;
};

struct PooledStack {
    StackPool* pool;
    context::stack_context allocate() { return pool->allocate(); }
    void deallocate(context::stack_context& stack) noexcept { pool->deallocate(stack); }
};

struct SharedRegion {
    void* data;
    std::size_t bytes;
};
std::vector<SharedRegion>& shared_regions() {
    static std::vector<SharedRegion> regions;
    return regions;
}

std::mutex launch_mutex;
StackPool& stacks() {
    static StackPool& pool = *new StackPool;  // outlives the fibers of `threads`
    return pool;
}
Schedule current_schedule = Schedule::ascending;
std::int64_t launch_count = 0;
std::vector<Thread> threads;
std::vector<int> order;
std::vector<double> dynamic_memory;
int current = 0;
std::exception_ptr failure;

void switch_away(State state) {
    Thread& t = threads[static_cast<std::size_t>(current)];
    t.state = state;
    const int self = current;
    *t.scheduler = std::move(*t.scheduler).resume();
    current = self;
    threadIdx.x = static_cast<unsigned>(self);
}

void poison() {
    for (const SharedRegion& region : shared_regions()) std::memset(region.data, 0xff, region.bytes);  // 0xffff… is NaN
    if (!dynamic_memory.empty()) std::memset(dynamic_memory.data(), 0xff, dynamic_memory.size() * sizeof(double));
}

bool all_are(State state, std::size_t first, std::size_t end) {
    return std::all_of(threads.begin() + static_cast<std::ptrdiff_t>(first), threads.begin() + static_cast<std::ptrdiff_t>(end),
                       [=](const Thread& t) { return t.state == state; });
}

void resume(int i) {
    Thread& t = threads[static_cast<std::size_t>(i)];
    current = i;
    threadIdx = {static_cast<unsigned>(i), 0, 0};
    t.fiber = std::move(t.fiber).resume();
    if (failure) std::rethrow_exception(failure);
}

/// Runs a warp as far as it gets without the others: what another warp has not been kept from by a barrier happens.
void run_warp(std::size_t first) {
    const std::size_t end = std::min(threads.size(), first + warp_size);
    for (;;) {
        for (const int i : order)
            if (static_cast<std::size_t>(i) >= first && static_cast<std::size_t>(i) < end &&
                threads[static_cast<std::size_t>(i)].state == State::ready)
                resume(i);
        if (!all_are(State::at_exchange, first, end)) return;
        for (std::size_t i = first; i < end; ++i) threads[i].state = State::ready;
    }
}

void run_block(const std::function<void()>& body) {
    for (std::size_t i = 0; i < threads.size(); ++i) {
        Thread& t = threads[i];
        t.state = State::ready;
        t.parity = 0;
        t.fiber = context::fiber(std::allocator_arg, PooledStack{&stacks()}, [&t, &body](context::fiber&& back) {
            context::fiber scheduler = std::move(back);
            t.scheduler = &scheduler;
            try {
                body();
            } catch (const context::detail::forced_unwind&) {
                throw;
            } catch (...) {
                failure = std::current_exception();
            }
            t.state = State::done;
            return scheduler;
        });
    }
    for (;;) {
        // Warps in the order of their first threads in `order`.
        for (const int i : order)
            if (i % warp_size == 0) run_warp(static_cast<std::size_t>(i));
        if (all_are(State::done, 0, threads.size())) return;
        ATELIER_CHECK(all_are(State::at_barrier, 0, threads.size()),
                      "block {}: threads wait for a barrier or a shuffle that others of their block or warp never reach", blockIdx.x);
        for (Thread& t : threads) t.state = State::ready;
    }
}

void make_order(std::size_t count) {
    order.resize(count);
    for (std::size_t i = 0; i < count; ++i) order[i] = static_cast<int>(current_schedule == Schedule::descending ? count - 1 - i : i);
    if (current_schedule == Schedule::shuffled) {
        std::minstd_rand random(static_cast<unsigned>(launch_count + 1));
        std::shuffle(order.begin(), order.end(), random);
    }
}

}  // namespace

void set_schedule(Schedule schedule) { current_schedule = schedule; }
std::int64_t launches() { return launch_count; }

namespace detail {
SharedBlock::SharedBlock(void* data, std::size_t bytes) {
    shared_regions().push_back({data, bytes});
    std::memset(data, 0xff, bytes);
}
}  // namespace detail

namespace {

void run_now(std::int64_t blocks_x, std::int64_t blocks_y, std::int64_t blocks_z, int thread_count, std::size_t shared_bytes,
         const std::function<void()>& body) {
    const std::scoped_lock lock(launch_mutex);
    ATELIER_CHECK(thread_count > 0 && thread_count <= 1024 && shared_bytes <= (48u << 10), "{} threads with {} bytes of shared memory",
                  thread_count, shared_bytes);
    const Access access;
    ++launch_count;
    failure = nullptr;
    threads.clear();
    threads.resize(static_cast<std::size_t>(thread_count));
    make_order(threads.size());
    dynamic_memory.assign((shared_bytes + sizeof(double) - 1) / sizeof(double), 0.0);
    blockDim = {static_cast<unsigned>(thread_count), 1, 1};
    gridDim = {static_cast<unsigned>(blocks_x), static_cast<unsigned>(blocks_y), static_cast<unsigned>(blocks_z)};
    // What a failed block left unfinished is unwound at once, while its stacks are there.
    const struct Unwind {
        ~Unwind() { threads.clear(); }
    } unwind;
    for (std::int64_t z = 0; z < blocks_z; ++z)
        for (std::int64_t y = 0; y < blocks_y; ++y)
            for (std::int64_t x = 0; x < blocks_x; ++x) {
                blockIdx = {static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z)};
                poison();
                run_block(body);
            }
}

bool recording = false;
std::vector<std::function<void()>> recorded;

}  // namespace

void run(std::int64_t blocks_x, std::int64_t blocks_y, std::int64_t blocks_z, int thread_count, std::size_t shared_bytes,
         const std::function<void()>& body) {
    queue([=] { run_now(blocks_x, blocks_y, blocks_z, thread_count, shared_bytes, body); });
}

void queue(std::function<void()> work) {
    if (!recording) return work();
    recorded.push_back(std::move(work));
}

Recording::Recording() {
    ATELIER_CHECK(!recording, "a recording within a recording");
    recorded.clear();
    recording = true;
}
Recording::~Recording() { recording = false; }
std::vector<std::function<void()>> Recording::take() {
    recording = false;
    return std::move(recorded);
}
bool is_recording() { return recording; }

void barrier() { switch_away(State::at_barrier); }

void exchange(const void* mine, void* theirs, std::size_t bytes, unsigned mask, int xor_mask) {
    ATELIER_CHECK(mask == 0xffffffffu, "a shuffle of part of a warp ({:x}): kernels use whole warps", mask);
    Thread& t = threads[static_cast<std::size_t>(current)];
    const unsigned parity = t.parity;
    t.parity ^= 1;  // a lane is at most one exchange ahead of the others: two slots are enough
    std::memcpy(t.slots[parity], mine, bytes);
    const int self = current;
    switch_away(State::at_exchange);
    const int partner = self ^ xor_mask;
    ATELIER_CHECK(partner < static_cast<int>(threads.size()), "lane {} asks for thread {}: blocks are of whole warps", self, partner);
    std::memcpy(theirs, threads[static_cast<std::size_t>(partner)].slots[parity], bytes);
}

void* dynamic_shared() { return dynamic_memory.data(); }

namespace {

struct Allocation {
    std::byte* base;
    std::size_t mapped;  ///< without the guard page
    bool host_may_touch;
};
std::map<void*, Allocation>& allocations() {
    static std::map<void*, Allocation> all;
    return all;
}
std::recursive_mutex allocation_mutex;

/// Locks device memory: by a protection key, which costs an instruction to turn and is each thread's own, or where the processor has none by
/// the protection of every page.
class MemoryLock {
  public:
    void add(void* base, std::size_t bytes) {
        if (key_ >= 0)
            ATELIER_CHECK(pkey_mprotect(base, bytes, PROT_READ | PROT_WRITE, key_) == 0, "a protection key was refused");
        else if (depth_ == 0)
            mprotect(base, bytes, PROT_NONE);
    }
    void open() {
        if (key_ >= 0) {
            if (own_depth_++ == 0) pkey_set(key_, 0);
        } else if (depth_++ == 0) {
            protect(PROT_READ | PROT_WRITE);
        }
    }
    void close() {
        if (key_ >= 0) {
            if (--own_depth_ == 0) pkey_set(key_, PKEY_DISABLE_ACCESS);
        } else if (--depth_ == 0) {
            protect(PROT_NONE);
        }
    }

  private:
    static void protect(int flags) {
        for (const auto& [address, a] : allocations())
            if (!a.host_may_touch) mprotect(a.base, a.mapped, flags);
    }
    const int key_ = pkey_alloc(0, PKEY_DISABLE_ACCESS);
    int depth_ = 0;
    static thread_local int own_depth_;
};
thread_local int MemoryLock::own_depth_ = 0;

MemoryLock& memory_lock() {
    static MemoryLock instance;
    return instance;
}

}  // namespace

void* allocate(std::size_t bytes, bool host_may_touch) {
    const std::scoped_lock lock(allocation_mutex);
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    // The end lies against a page that nobody may touch, as near as the alignment of vector loads allows.
    const std::size_t padded = (std::max<std::size_t>(bytes, 1) + 15) / 16 * 16, mapped = (padded + page - 1) / page * page;
    auto* base = static_cast<std::byte*>(mmap(nullptr, mapped + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    ATELIER_CHECK_IO(base != MAP_FAILED, "cannot map {} bytes", mapped);
    mprotect(base + mapped, page, PROT_NONE);
    void* address = base + mapped - padded;
    std::memset(address, 0xff, padded);
    allocations()[address] = {base, mapped, host_may_touch};
    if (!host_may_touch) memory_lock().add(base, mapped);
    return address;
}

void release(void* memory) {
    const std::scoped_lock lock(allocation_mutex);
    const auto found = allocations().find(memory);
    if (found == allocations().end()) return;
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    munmap(found->second.base, found->second.mapped + page);
    allocations().erase(found);
}

void check_device_address(const void* address, std::size_t alignment) {
    if (address == nullptr) return;
    const std::scoped_lock lock(allocation_mutex);
    auto after = allocations().upper_bound(const_cast<void*>(address));
    const auto* at = static_cast<const std::byte*>(address);
    const bool is_there = after != allocations().begin() && at <= std::prev(after)->second.base + std::prev(after)->second.mapped;
    ATELIER_CHECK(is_there, "{} is no address of the device's memory", address);
    ATELIER_CHECK(reinterpret_cast<std::uintptr_t>(address) % alignment == 0, "{} is no multiple of {}", address, alignment);
}

Access::Access() {
    const std::scoped_lock lock(allocation_mutex);
    memory_lock().open();
}
Access::~Access() {
    const std::scoped_lock lock(allocation_mutex);
    memory_lock().close();
}

}  // namespace emulator
