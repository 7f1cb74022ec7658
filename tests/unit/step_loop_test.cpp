// No step takes memory or a lock, in sampling, in a GRPO update (gradients, norm, AdamW) and in distillation (the teacher's velocities,
// gradients, norm, AdamW), for text to image and for edits: once a group's work has been done, doing it again, with however many steps,
// takes nothing but its result. Every allocation and every lock (mutexes, read-write locks, spin locks, semaphores, conditions waited for)
// of the process is seen here; what oneDNN does within a product (room for packed operands) is counted apart and printed.
#include <dlfcn.h>
#include <execinfo.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <semaphore.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>

#include "../oracle/oracle_folder.hpp"
#include "core/parallel.hpp"
#include "distill/student_sampler.hpp"
#include "distill/student_states.hpp"
#include "flow/noise.hpp"
#include "io/image/png.hpp"
#include "optim/adamw.hpp"
#include "optim/gradient_norm.hpp"
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

// What takes a lock, or waits for one.
#define ATELIER_COUNTED(name, type)                                                            \
    int name(type* lock) {                                                                     \
        static const auto next = reinterpret_cast<int (*)(type*)>(dlsym(RTLD_NEXT, #name));    \
        count(counts.locks);                                                                   \
        return next(lock);                                                                     \
    }
ATELIER_COUNTED(pthread_mutex_lock, pthread_mutex_t)
ATELIER_COUNTED(pthread_mutex_trylock, pthread_mutex_t)
ATELIER_COUNTED(pthread_rwlock_rdlock, pthread_rwlock_t)
ATELIER_COUNTED(pthread_rwlock_wrlock, pthread_rwlock_t)
ATELIER_COUNTED(sem_wait, sem_t)
#undef ATELIER_COUNTED
int pthread_spin_lock(pthread_spinlock_t* lock) {
    static const auto next = reinterpret_cast<int (*)(pthread_spinlock_t*)>(dlsym(RTLD_NEXT, "pthread_spin_lock"));
    count(counts.locks);
    return next(lock);
}
int pthread_cond_wait(pthread_cond_t* condition, pthread_mutex_t* mutex) {
    static const auto next = reinterpret_cast<int (*)(pthread_cond_t*, pthread_mutex_t*)>(dlvsym(RTLD_NEXT, "pthread_cond_wait", "GLIBC_2.3.2"));
    count(counts.locks);
    return next(condition, mutex);
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

/// Gradients with the optimizer over them: what an update does beside a group's own work.
struct Update {
    explicit Update(const nn::ParameterTable& table)
        : numbers(static_cast<std::size_t>(table.flat_size())),
          m(numbers.size()),
          v(numbers.size()),
          gradients(table, Tensor::of(numbers.data(), {table.flat_size()})),
          norm(table.flat_size()) {}
    void begin() { std::fill(numbers.begin(), numbers.end(), 0.0f); }
    void finish(const nn::ParameterStore& weights) {
        const double scale = optim::clip_scale(std::sqrt(norm.sum_of_squares(numbers)), 1.0);
        optim::adamw_step({}, 1e-6, ++updates, scale, ranges, numbers, {weights.data(), numbers.size()}, m, v);
    }
    std::vector<float> numbers, m, v;
    std::vector<optim::ParameterRange> ranges{{0, static_cast<std::int64_t>(numbers.size()), true}};
    nn::ParameterStore gradients;
    optim::GradientNorm norm;
    std::int64_t updates = 0;
};

struct Case {
    bool edit;
    int threads;
};

pipeline::Placement training_placement() {
    pipeline::Placement p;
    p.weights_change = true;
    return p;
}

class StepLoop : public ::testing::TestWithParam<Case> {
  protected:
    StepLoop() : model(testing::oracle_folder() / "pipeline" / "pipeline", {}, training_placement()), update(model.dit().table()) {
        void* warm[4];
        backtrace(warm, 4);  // loads what it needs the first time
        set_threads(GetParam().threads);
        std::shared_ptr<const model::ReferenceInputs> references;
        if (GetParam().edit) {
            const std::vector<io::Image> images{io::read_png(testing::oracle_folder() / "pipeline" / "case-e2e-edit" / "image-0.png")};
            references = model.prepare(images, 96);
        }
        conditional = model.encode("A red circle left of the blue star", references);
        unconditional = model.encode("", references);
        for (int m = 0; m < members; ++m) keys.push_back(flow::sample_noise_key(1, 2, 3, static_cast<std::uint64_t>(m)));
    }
    ~StepLoop() override { set_threads(1); }

    static constexpr int members = 4, micro_batch = 2;

    /// Counts `work` once it has been done: the least of a few times, since a thread that got none of it before takes its room then.
    template <typename Work>
    Found repeated(const char* what, int steps, Work&& work) {
        work();
        Found found = counted(work);
        for (int i = 1; i < (GetParam().threads == 1 ? 1 : 3); ++i) {
            const Found again = counted(work);
            found = {std::min(found.allocations, again.allocations), std::min(found.locks, again.locks), again.of_products};
        }
        std::printf("%s, %d steps: %ld allocations, %ld locks; in products %ld\n", what, steps, found.allocations, found.locks, found.of_products);
        return found;
    }
    /// A group under guidance.
    template <typename Work>
    Found of_group(const char* what, int steps, std::vector<int> trained, flow::GuidanceTrain train, dit::Keep keep, Work&& work) {
        SamplingSpec spec;
        spec.target = {4, 4};
        spec.schedule = model.schedule(steps, spec.target.tokens());
        spec.trained_steps = std::move(trained);
        spec.guidance.scale = 2.5;
        spec.guidance_train = train;
        spec.members = members, spec.micro_batch = micro_batch;
        Workspace workspace("group");
        GroupPolicy policy = workspace.build([&](Arena& arena) {
            return GroupPolicy(model.dit(), model.dit_weights(), conditional, &unconditional, spec, keep, arena);
        });
        const GroupTrajectory t = policy.sample(keys);
        return repeated(what, steps, [&] { work(policy, t); });
    }
    struct Student {
        distill::StudentSampler sampler;
        distill::StudentStates states;
    };
    /// A student's trajectories, with a guided teacher.
    template <typename Work>
    Found of_student(const char* what, int steps, dit::Keep keep, Work&& work) {
        distill::StudentSpec spec;
        spec.target = {4, 4};
        spec.schedule = model.schedule(steps, spec.target.tokens());
        spec.members = members, spec.micro_batch = micro_batch;
        Workspace workspace("group");
        const std::array<const pipeline::EncodedPrompt*, 1> prompts{&conditional};
        Student student = workspace.build([&](Arena& arena) {
            return Student{{model.dit(), model.dit_weights(), prompts, spec, arena},
                           {model.dit(), model.dit_weights(), conditional, &unconditional, spec, keep, arena}};
        });
        const distill::StudentTrajectory t = std::move(student.sampler.sample(keys).front());
        const std::vector<float> teacher = student.states.velocities({2.5}, t.x);
        return repeated(what, steps, [&] { work(student, t, teacher); });
    }
    pipeline::Pipeline model;
    Update update;
    pipeline::EncodedPrompt conditional, unconditional;
    std::vector<RandomKey> keys;
};

TEST(Counter, Sees) {
    const Found found = counted([] {
        std::vector<int> some(100);
        ASSERT_NE(some.data(), nullptr);
        pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
        pthread_mutex_lock(&mutex);
        pthread_mutex_unlock(&mutex);
        pthread_rwlock_t shared = PTHREAD_RWLOCK_INITIALIZER;
        pthread_rwlock_rdlock(&shared);
        pthread_rwlock_unlock(&shared);
        sem_t semaphore;
        sem_init(&semaphore, 0, 1);
        sem_wait(&semaphore);
        const std::mutex cpp;
        const std::lock_guard lock(const_cast<std::mutex&>(cpp));
    });
    EXPECT_EQ(found.allocations, 1);
    EXPECT_EQ(found.locks, 4);
}

TEST_P(StepLoop, SamplingTakesNothingAStep) {
    const auto work = [&](GroupPolicy& p, const GroupTrajectory&) { (void)p.sample(keys); };
    const auto conditional_only = flow::GuidanceTrain::conditional;
    const Found few = of_group("sampling", 4, {0, 1}, conditional_only, dit::Keep::nothing, work),
                many = of_group("sampling", 12, {0, 1}, conditional_only, dit::Keep::nothing, work);
    EXPECT_EQ(few.allocations, many.allocations) << "what is allocated is the result's";
    EXPECT_LE(many.allocations, 6) << "six vectors";
    EXPECT_EQ(many.locks, 0);
}

TEST_P(StepLoop, AnUpdateTakesNothing) {
    const std::vector<double> advantage{1.0, -0.5, 0.25, -1.0};
    const auto work = [&](GroupPolicy& p, const GroupTrajectory& t) {
        update.begin();
        p.train({}, t, advantage, 0.1, update.gradients);
        update.finish(model.dit_weights());
    };
    for (const auto train : {flow::GuidanceTrain::conditional, flow::GuidanceTrain::guided})
        for (const auto keep : {dit::Keep::activations, dit::Keep::products, dit::Keep::branches, dit::Keep::inputs}) {
            const Found few = of_group("update", 8, {0}, train, keep, work), many = of_group("update", 8, {0, 1, 2, 3}, train, keep, work);
            EXPECT_EQ(few.allocations, 0);
            EXPECT_EQ(many.allocations, 0);
            EXPECT_EQ(many.locks, 0);
        }
}

TEST_P(StepLoop, ATeachersVelocitiesTakeNothingAStep) {
    const auto work = [&](Student& s, const distill::StudentTrajectory& t, const std::vector<float>&) {
        (void)s.sampler.sample(keys);
        (void)s.states.velocities({2.5}, t.x);
    };
    const Found few = of_student("the student's states, the teacher's velocities", 4, dit::Keep::nothing, work),
                many = of_student("the student's states, the teacher's velocities", 12, dit::Keep::nothing, work);
    EXPECT_EQ(few.allocations, many.allocations) << "what is allocated is the results'";
    EXPECT_LE(many.allocations, 7) << "seven vectors";
    EXPECT_EQ(many.locks, 0);
}

TEST_P(StepLoop, ADistillationStepTakesNothing) {
    for (const auto kind : {distill::LossKind::velocity, distill::LossKind::kl})
        for (const auto keep : {dit::Keep::activations, dit::Keep::products, dit::Keep::branches, dit::Keep::inputs}) {
            const Found found = of_student("distillation", 6, keep,
                                           [&](Student& s, const distill::StudentTrajectory& t, const std::vector<float>& teacher) {
                                               update.begin();
                                               s.states.train(kind, t.x, teacher, 0.1, update.gradients);
                                               update.finish(model.dit_weights());
                                           });
            EXPECT_EQ(found.allocations, 0);
            EXPECT_EQ(found.locks, 0);
        }
}

INSTANTIATE_TEST_SUITE_P(Work, StepLoop, ::testing::Values(Case{false, 1}, Case{true, 1}, Case{false, 2}, Case{true, 2}), [](const auto& info) {
    return std::string(info.param.edit ? "Edit" : "TextToImage") + (info.param.threads == 1 ? "OneThread" : "TwoThreads");
});

}  // namespace
}  // namespace atelier::rl
