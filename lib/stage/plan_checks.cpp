#include "stage/plan_checks.hpp"

#include <algorithm>
#include <cctype>
#include <set>

#include "io/image/png.hpp"
#include "reward/scorer.hpp"
#include "stage/grpo.hpp"
#include "stage/rollout.hpp"
#include "stage/schema.hpp"
#include "stage/scorers.hpp"
#include "stage/student.hpp"

namespace atelier::stage {
namespace {

bool is_number(const std::string& text) {
    return !text.empty() && text.size() < 10 && std::ranges::all_of(text, [](unsigned char c) { return std::isdigit(c) != 0; });
}

/// A number and a unit, as sbatch takes it; 0: all that a node has.
bool is_memory(std::string text) {
    if (!text.empty() && std::toupper(static_cast<unsigned char>(text.back())) == 'B') text.pop_back();
    if (!text.empty() && std::string("KMGTkmgt").find(text.back()) != std::string::npos) text.pop_back();
    return is_number(text);
}

/// Of a time limit as sbatch takes it: minutes, minutes:seconds, hours:minutes:seconds, days-hours and so on. 0: no limit. Nothing: it is none.
std::optional<std::int64_t> seconds_of(std::string text) {
    std::ranges::transform(text, text.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    if (text == "infinite" || text == "unlimited") return 0;
    std::vector<std::int64_t> numbers;
    const std::size_t dash = text.find('-');
    const bool has_days = dash != std::string::npos;
    if (has_days) text[dash] = ':';
    for (std::size_t begin = 0; begin <= text.size();) {
        const std::size_t end = std::min(text.find(':', begin), text.size());
        const std::string part = text.substr(begin, end - begin);
        if (!is_number(part)) return std::nullopt;
        numbers.push_back(std::stoll(part));
        begin = end + 1;
    }
    const auto at = [&](std::size_t i) { return i < numbers.size() ? numbers[i] : 0; };
    if (has_days) return numbers.size() <= 4 && numbers.size() >= 2 ? std::optional(((at(0) * 24 + at(1)) * 60 + at(2)) * 60 + at(3)) : std::nullopt;
    if (numbers.size() == 3) return (at(0) * 60 + at(1)) * 60 + at(2);
    return numbers.size() <= 2 ? std::optional(at(0) * 60 + at(1)) : std::nullopt;
}

// Lines of a pool that are looked at when a run is planned: minutes on a slow file system.
constexpr std::size_t checked_prompts = 10'000;

/// Pictures that are not there, or no PNG, and with the world's measures attributes that are none of its scenes.
void check_prompts(const PromptPool& pool, bool of_the_world) {
    const std::size_t step = std::max<std::size_t>(1, pool.size() / checked_prompts);
    for (std::size_t i = 0; i < pool.size(); i += step) {
        const Prompt prompt = pool.at(i);
        try {
            for (const auto& path : prompt.images) io::read_png_size(path);
            if (of_the_world) reward::check_world_attributes(prompt.attributes);
        } catch (const Error& e) {
            ATELIER_FAIL(e.kind(), "{}: prompt '{}': {}", pool.file().string(), prompt.id, e.message());
        }
    }
}

/// Whether a stage's ranks score for the others as [reward] ranks says.
bool may_have_judges(const std::string& stage) { return stage == "curate" || stage == "rollout" || stage == "evaluate"; }

}  // namespace

void check_settings(const Context& c) {
    check_scorer(c.config);
    c.product_precision();
    ATELIER_CHECK_USAGE(c.config.number("curate.mean_low") <= c.config.number("curate.mean_high"), "curate.mean_low = {} is above curate.mean_high = {}",
                        c.config.number("curate.mean_low"), c.config.number("curate.mean_high"));
    const std::int64_t stop_early = c.config.integer("slurm.stop_early");
    ATELIER_CHECK_USAGE(!c.config.text("slurm.launcher").empty(), "slurm.launcher is empty: a command that starts ranks was expected, as srun --mpi=pmix");
    for (const char* stage : stages_with_resources) {
        const std::string prefix = fmt::format("slurm.{}.", stage), &memory = c.config.text(prefix + "memory"), &time = c.config.text(prefix + "time");
        ATELIER_CHECK_USAGE(is_memory(memory), "{}memory = \"{}\": a number and K, M, G or T was expected, as 64G", prefix, memory);
        const auto limit = seconds_of(time);
        ATELIER_CHECK_USAGE(limit, "{}time = \"{}\": minutes, hours:minutes:seconds or days-hours:minutes:seconds was expected, as 04:00:00", prefix, time);
        ATELIER_CHECK_USAGE(*limit == 0 || *limit > stop_early,
                            "{}time = \"{}\": more than slurm.stop_early = {} seconds was expected, or the job is asked to stop when it starts", prefix, time,
                            stop_early);
    }
}

void check_files(const Context& given) {
    Context c = given;
    ATELIER_CHECK_INPUT(std::filesystem::is_directory(c.model()), "run.model = \"{}\": a diffusers model directory was expected", c.model().string());
    pipeline::check_model_directory(c.model());
    const auto schedule = flow::read_schedule_config(c.model() / "scheduler" / "scheduler_config.json");
    std::vector<std::string> policies;
    if (c.config.flag("pipeline.teachers")) policies = c.config.tasks();
    if (c.config.flag("pipeline.mix")) policies.push_back(mix_policy);
    for (const std::string& policy : policies) {
        c.policy = policy;
        const rl::SamplingSpec spec = c.sampling(schedule);
        rl::check_sampling(spec);
        rl::check_objective(objective_of(c.config), spec);
    }
    if (c.config.flag("pipeline.teachers") && c.config.integer("distill.rounds") > 0) student_spec(c, schedule);
    std::map<std::string, std::size_t> pools;  // prompts to train on, at most
    for (const std::string& task : c.config.tasks())
        for (const char* which : {"train", "heldout"}) {
            const std::string key = fmt::format("task.{}.{}", task, which);
            ATELIER_CHECK_INPUT(std::filesystem::is_regular_file(c.config.text(key)), "{} = \"{}\": a file of prompts was expected", key, c.config.text(key));
            const PromptPool pool(c.config.text(key), task, c.kind(task));
            const std::size_t size = pool.size();
            check_prompts(pool, c.config.text("reward.scorer") == "world" || c.config.text("reward.truth") == "world");
            const auto curated = static_cast<std::size_t>(c.config.flag("curate.enabled") ? c.config.integer("curate.prompts") : 0);
            if (std::string_view(which) == "train") pools[task] = curated > 0 ? std::min(size, curated) : size;
        }
    for (const std::string& policy : policies) {
        c.policy = policy;
        const auto tasks = c.tasks();
        const auto counts = prompts_of_tasks(c);
        for (std::size_t t = 0; t < tasks.size(); ++t)
            ATELIER_CHECK_USAGE(counts[t] <= pools.at(tasks[t]),
                                "rollout.prompts_per_iteration = {} asks for {} prompts of task {} for policy {}; its pool has {} at most",
                                c.config.integer("rollout.prompts_per_iteration"), counts[t], tasks[t], policy, pools.at(tasks[t]));
    }
    check_scorer_files(c);
}

void check_resources(const Context& c, const std::vector<Job>& jobs) {
    std::set<std::string> stages;
    for (const Job& job : jobs) stages.insert(job.stage);
    // Devices may be asked for in other words.
    const auto asks_itself = [&](const std::string& key) {
        return std::ranges::any_of(c.config.list(key), [](const std::string& option) {
            return option.starts_with("--gres") || option.starts_with("--gpus") || option.starts_with("-G");
        });
    };
    for (const std::string& stage : stages) {
        const auto number = [&](const char* key) { return c.config.integer(fmt::format("slurm.{}.{}", stage, key)); };
        const std::int64_t ranks = number("ranks"), nodes = number("nodes"), devices = number("gpus_per_node"), on_a_node = (ranks + nodes - 1) / nodes;
        const std::int64_t judges = may_have_judges(stage) ? c.config.integer("reward.ranks") : 0;
        ATELIER_CHECK_USAGE(nodes <= ranks, "slurm.{}.nodes = {}: at most slurm.{}.ranks = {} was expected", stage, nodes, stage, ranks);
        ATELIER_CHECK_USAGE(judges < ranks, "slurm.{}.ranks = {}: more than reward.ranks = {} was expected, or none is left to sample", stage, ranks, judges);
        if (c.device() != Device::cuda || asks_itself("slurm.options") || asks_itself(fmt::format("slurm.{}.options", stage))) continue;
        // Judges are the last ranks, and have a device where they judge on one.
        const bool judges_need_it = c.config.text("reward.scorer") == "judge" && c.judge_device() != Device::cpu;
        const std::int64_t needed = judges_need_it ? on_a_node : std::min(on_a_node, ranks - judges);
        ATELIER_CHECK_USAGE(devices >= needed,
                            "slurm.{}.gpus_per_node = {}: at least {} was expected, since compute.device = \"cuda\" puts the models of each of the {} ranks that "
                            "a node has on a GPU of its own", stage, devices, needed, on_a_node);
    }
}

}  // namespace atelier::stage
