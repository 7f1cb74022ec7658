// No step takes memory or a lock: what a group does of either depends on how many steps it makes no more than on the weather. Every
// allocation and every mutex of the process is seen here; what oneDNN does within a product (room for packed operands) is counted
// apart and printed.
#include <dlfcn.h>
#include <execinfo.h>
#include <gtest/gtest.h>
#include <pthread.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "../oracle/oracle_folder.hpp"
#include "core/parallel.hpp"
#include "flow/noise.hpp"
#include "rl/group_policy.hpp"

namespace {

struct Counts {
    std::atomic<long> allocations{0}, locks{0}, of_products{0};
};
Counts counts;
std::atomic<bool> counts_now{false};

/// Whether a call came from within oneDNN: the first frame outside the C and C++ libraries tells.
bool is_of_products() {
    void* frames[24];
    const int n = backtrace(frames, 24);
    for (int i = 2; i < n; ++i) {
        Dl_info info{};
        if (dladdr(frames[i], &info) == 0 || info.dli_fname == nullptr) continue;
        if (std::strstr(info.dli_fname, "libstdc++") != nullptr || std::strstr(info.dli_fname, "libc.so") != nullptr) continue;
        return std::strstr(info.dli_fname, "libdnnl") != nullptr;
    }
    return false;
}

void count(std::atomic<long>& kind) {
    if (!counts_now.exchange(false)) return;  // also keeps the look at the stack from counting itself
    ++(is_of_products() ? counts.of_products : kind);
    counts_now = true;
}

}  // namespace

extern "C" {
void* __libc_malloc(std::size_t bytes);
void* __libc_calloc(std::size_t count, std::size_t bytes);
void* __libc_realloc(void* memory, std::size_t bytes);
void* __libc_memalign(std::size_t alignment, std::size_t bytes);

void* malloc(std::size_t bytes) {
    count(counts.allocations);
    return __libc_malloc(bytes);
}
void* calloc(std::size_t n, std::size_t bytes) {
    count(counts.allocations);
    return __libc_calloc(n, bytes);
}
void* realloc(void* memory, std::size_t bytes) {
    count(counts.allocations);
    return __libc_realloc(memory, bytes);
}
void* memalign(std::size_t alignment, std::size_t bytes) {
    count(counts.allocations);
    return __libc_memalign(alignment, bytes);
}
void* aligned_alloc(std::size_t alignment, std::size_t bytes) { return memalign(alignment, bytes); }
int posix_memalign(void** memory, std::size_t alignment, std::size_t bytes) {
    *memory = memalign(alignment, bytes);
    return *memory == nullptr ? ENOMEM : 0;
}
int pthread_mutex_lock(pthread_mutex_t* mutex) {
    static const auto next = reinterpret_cast<int (*)(pthread_mutex_t*)>(dlsym(RTLD_NEXT, "pthread_mutex_lock"));
    count(counts.locks);
    return next(mutex);
}
}

namespace atelier::rl {
namespace {

struct Found {
    long allocations, locks, of_products;
};

template <typename Work>
Found counted(Work&& work) {
    counts.allocations = counts.locks = counts.of_products = 0;
    counts_now = true;
    work();
    counts_now = false;
    return {counts.allocations, counts.locks, counts.of_products};
}

class StepLoop : public ::testing::Test {
  protected:
    StepLoop() : model(testing::oracle_folder() / "pipeline" / "pipeline") {
        void* warm[4];
        backtrace(warm, 4);  // loads what it needs the first time
        set_threads(1);
        conditional = model.encode("A red circle left of the blue star", nullptr);
        unconditional = model.encode("", nullptr);
        for (int m = 0; m < 2; ++m) keys.push_back(flow::sample_noise_key(1, 2, 3, static_cast<std::uint64_t>(m)));
    }
    /// A group of two under guidance, with its work done once before it is counted.
    template <typename Work>
    Found of_group(int steps, std::vector<int> trained, dit::Keep keep, Work&& work) {
        SamplingSpec spec;
        spec.target = {4, 4};
        spec.schedule = model.schedule(steps, spec.target.tokens());
        spec.trained_steps = std::move(trained);
        spec.guidance.scale = 2.5;
        spec.members = spec.micro_batch = 2;
        Workspace workspace("group");
        GroupPolicy policy = workspace.build([&](Arena& arena) {
            return GroupPolicy(model.dit(), model.dit_weights(), conditional, &unconditional, spec, keep, arena);
        });
        const GroupTrajectory t = policy.sample(keys);
        work(policy, t);
        const Found found = counted([&] { work(policy, t); });
        std::printf("%d steps, %zu trained: %ld allocations, %ld locks; in products %ld\n", steps, spec.trained_steps.size(),
                    found.allocations, found.locks, found.of_products);
        return found;
    }
    pipeline::Pipeline model;
    pipeline::EncodedPrompt conditional, unconditional;
    std::vector<RandomKey> keys;
};

TEST_F(StepLoop, TheCounterSees) {
    const Found found = counted([] {
        std::vector<int> some(100);
        ASSERT_NE(some.data(), nullptr);
        pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
        pthread_mutex_lock(&mutex);
        pthread_mutex_unlock(&mutex);
    });
    EXPECT_EQ(found.allocations, 1);
    EXPECT_EQ(found.locks, 1);
}

TEST_F(StepLoop, SamplingTakesNothingAStep) {
    const auto work = [&](GroupPolicy& p, const GroupTrajectory&) { (void)p.sample(keys); };
    const Found few = of_group(4, {0, 1}, dit::Keep::nothing, work), many = of_group(12, {0, 1}, dit::Keep::nothing, work);
    EXPECT_EQ(few.allocations, many.allocations) << "what is allocated is the result's";
    EXPECT_EQ(many.locks, 0);
}

TEST_F(StepLoop, TrainingTakesNothingAStep) {
    std::vector<float> numbers(static_cast<std::size_t>(model.dit().table().flat_size()));
    const nn::ParameterStore gradients(model.dit().table(), Tensor::of(numbers.data(), {model.dit().table().flat_size()}));
    const std::vector<double> advantage{1.0, -0.5};
    const auto work = [&](GroupPolicy& p, const GroupTrajectory& t) { p.train({}, t, advantage, 0.1, gradients); };
    for (const auto keep : {dit::Keep::activations, dit::Keep::inputs}) {
        const Found few = of_group(8, {0}, keep, work), many = of_group(8, {0, 1, 2, 3}, keep, work);
        EXPECT_EQ(few.allocations, 0);
        EXPECT_EQ(many.allocations, 0);
        EXPECT_EQ(many.locks, 0);
    }
}

}  // namespace
}  // namespace atelier::rl
