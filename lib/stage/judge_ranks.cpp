#include "stage/judge_ranks.hpp"

#include <algorithm>
#include <numeric>
#include <set>

#include "core/progress.hpp"
#include "reward/judge_ranks.hpp"
#include "stage/memory_entries.hpp"
#include "stage/picture_sizes.hpp"
#include "stage/scorers.hpp"
#include "stage/scoring.hpp"
#include "stage/stage_memory.hpp"

namespace atelier::stage {
namespace {

int judge(const Context& c, comm::Mailbox& mailbox, int generators) {
    StageMemory memory;
    std::set<std::string> kinds;
    for (const std::string& task : c.config.tasks()) kinds.insert(c.kind(task));
    const reward::PoolConfig pool = pool_config(c.config);
    bool judged = false;
    const int code = reward::serve_as_judge(
        mailbox, generators, {kinds.begin(), kinds.end()}, pool, [&] { return make_scorer(c); },
        [&](const reward::Scorer& scorer) {
            judged = true;
            const Bytes bytes = scorer.bytes(static_cast<std::size_t>(pool.workers), largest_picture_bytes(c.config));
            if (bytes.device > 0) memory.plan.hold_device_libraries();
            memory.plan.hold("judge", bytes);
            memory.plan.hold("pictures to score", judge_picture_bytes(c));
            memory.say(c, "a judge's ");
        });
    if (judged) memory.compare(c, "a judge's ");
    return code;
}

}  // namespace

std::int64_t samples_in_work(const config::Config& config, int ranks) {
    const std::int64_t judges = config.integer("reward.ranks"), of_each = config.integer("reward.workers") + config.integer("reward.queue");
    if (judges == 0) return of_each;
    ATELIER_CHECK_USAGE(judges < ranks,
                        "reward.ranks = {} of {} rank{}: none is left to sample; start more ranks (slurm.<stage>.ranks counts both kinds) or "
                        "lower reward.ranks",
                        judges, ranks, ranks == 1 ? "" : "s");
    return std::max<std::int64_t>(1, judges * of_each / (ranks - judges));
}

std::size_t largest_picture_bytes(const config::Config& config) {
    std::size_t largest = 0;
    for (const std::string& task : config.tasks())
        for (const model::PictureSize& size : configured_sizes(config, task)) largest = std::max(largest, picture_bytes(target_grid(size)));
    return largest;
}

std::size_t judge_picture_bytes(const Context& c) {
    const auto tasks = c.config.tasks();
    const bool have_sources = std::any_of(tasks.begin(), tasks.end(), [&](const std::string& task) { return c.kind(task) == "edit"; });
    const reward::PoolConfig pool = pool_config(c.config);
    return 2 * static_cast<std::size_t>(pool.workers + pool.queue) * (have_sources ? 2 : 1) * largest_picture_bytes(c.config);
}

int with_judge_ranks(const Context& given, const std::function<int(const Context&)>& stage) {
    const int judges = static_cast<int>(given.config.integer("reward.ranks")), ranks = given.world->size();
    if (judges == 0) return stage(given);
    const auto in_work = static_cast<std::size_t>(samples_in_work(given.config, ranks));
    const int generators = ranks - judges, rank = given.world->rank();
    const bool is_judge = rank >= generators;
    const auto own = given.world->split(is_judge ? 1 : 0);
    auto mailbox = given.world->mailbox();
    Context c = given;
    c.world = own.get();
    if (is_judge) return judge(c, *mailbox, generators);
    std::vector<int> numbers(static_cast<std::size_t>(judges));
    std::iota(numbers.begin(), numbers.end(), generators);
    std::rotate(numbers.begin(), numbers.begin() + rank % judges, numbers.end());  // the first samples don't all go to one
    reward::JudgeRanks link(std::move(mailbox), std::move(numbers), in_work);
    c.judges = &link;
    const int code = stage(c);
    link.close(code);
    return code;
}

}  // namespace atelier::stage
