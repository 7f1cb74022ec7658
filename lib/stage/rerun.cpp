#include "stage/rerun.hpp"

#include <fmt/ranges.h>

#include <algorithm>

#include "stage/retention.hpp"

namespace atelier::stage {
namespace {

namespace fs = std::filesystem;

/// A job's output as another one trains from it.
struct Need {
    const Job* made_by;
    bool is_state;  ///< the optimizer's; else the trajectories
};

const Job& job_of(const std::vector<Job>& jobs, const std::string& name) {
    const auto found = std::ranges::find(jobs, name, &Job::name);
    ATELIER_CHECK_USAGE(found != jobs.end(), "the run has no stage {}: column -t RUN/pipeline.tsv lists them", name);
    return *found;
}

/// Updates train on the trajectories before them, from the optimizer's state of the update before those. All else needs what is never given up.
std::vector<Need> needs_of(const std::vector<Job>& jobs, const Job& job) {
    std::vector<Need> needs;
    if (job.stage != "grpo" && job.stage != "distill") return needs;
    for (const std::string& name : job.after) {
        const Job& trajectories = job_of(jobs, name);
        needs.push_back({&trajectories, false});
        for (const std::string& before : trajectories.after)
            if (const Job& update = job_of(jobs, before); update.stage == job.stage) needs.push_back({&update, true});
    }
    return needs;
}

bool was_given_up(const RunDirectory& run, const Need& need) {
    const fs::path directory = run.root / need.made_by->output;
    if (!fs::exists(directory / io::manifest_name)) return false;  // it is still to be made
    return need.is_state ? gave_up_state(directory) : gave_up_trajectories(directory);
}

/// Of which jobs `names` are, or come after. Jobs are in an order in which each comes after what it needs.
std::vector<bool> with_dependents(const std::vector<Job>& jobs, const std::vector<std::string>& names) {
    std::vector<bool> again;
    for (const Job& job : jobs)
        again.push_back(std::ranges::find(names, job.name) != names.end() || std::ranges::any_of(job.after, [&](const std::string& before) {
                            return again[static_cast<std::size_t>(&job_of(jobs, before) - jobs.data())];
                        }));
    return again;
}

/// The first need of what is made again that stays and was given up; null: there is none.
std::optional<std::pair<const Job*, Need>> first_missing(const RunDirectory& run, const std::vector<Job>& jobs, const std::vector<bool>& again) {
    for (std::size_t i = 0; i < jobs.size(); ++i)
        if (again[i])
            for (const Need& need : needs_of(jobs, jobs[i]))
                if (!again[static_cast<std::size_t>(need.made_by - jobs.data())] && was_given_up(run, need)) return std::pair(&jobs[i], need);
    return std::nullopt;
}

/// The same jobs by the fewest names: without those that come after others.
std::vector<std::string> without_dependents(const std::vector<Job>& jobs, const std::vector<std::string>& names) {
    std::vector<std::string> fewest;
    for (const std::string& name : names) {
        std::vector<std::string> others;
        std::ranges::copy_if(names, std::back_inserter(others), [&](const std::string& other) { return other != name; });
        if (!with_dependents(jobs, others)[static_cast<std::size_t>(&job_of(jobs, name) - jobs.data())]) fewest.push_back(name);
    }
    std::ranges::sort(fewest, {}, [&](const std::string& name) { return &job_of(jobs, name); });
    return fewest;
}

/// What a job keeps while it runs, of its directory as RunDirectory and the stages have it.
fs::path states_of(const RunDirectory& run, const Job& job) {
    if (job.stage == "reward-train") return run.judge_training().lexically_relative(run.root) / "updates";
    return job.stage == "grpo" || job.stage == "distill" ? fs::path(job.output).parent_path() / "updates" : fs::path();
}

/// Weights that other jobs of the run made.
struct Weights {
    fs::path directory;
    std::string policy;  ///< whose last ones they are; empty: which they are does not depend on how many iterations there are
};

/// What a job takes, as its manifest calls it.
struct Source {
    std::string name;
    std::vector<Weights> weights;
    bool is_mean = false;  ///< of all of them; else there is one
};

std::string argument_of(const Job& job, const std::string& option) {
    const auto found = std::ranges::find(job.arguments, option);
    ATELIER_CHECK(found != job.arguments.end() && std::next(found) != job.arguments.end(), "{} has no {}", job.name, option);
    return *std::next(found);
}

/// The base is the same for all of a run (run_model.hpp), and not among them.
std::vector<Source> sources_of(const Context& c, const Job& job) {
    const auto last_of = [&](const std::string& policy) { return Weights{c.final_directory(policy), policy}; };
    const std::vector<std::string> tasks = c.config.tasks();
    std::vector<Source> sources;
    if (job.stage == "rollout") {
        const std::int64_t iteration = std::stoll(argument_of(job, "--iteration"));
        if (iteration > 1) sources.push_back({"policy", {{c.run.policy(argument_of(job, "--policy"), iteration - 1), ""}}});
    } else if (job.stage == "teacher-dump") {
        sources.push_back({"teacher", {last_of(argument_of(job, "--task"))}});
        const std::int64_t round = std::stoll(argument_of(job, "--round"));
        if (round > 1) {
            sources.push_back({"student", {{c.run.student(round - 1), ""}}});
        } else if (c.config.text("distill.start") == "average") {
            sources.push_back({"student", {}, true});
            for (const std::string& task : tasks) sources.back().weights.push_back(last_of(task));
        }
    } else if (job.stage == "evaluate") {
        if (c.config.flag("pipeline.teachers")) {
            for (const std::string& task : tasks) sources.push_back({"teacher-" + task, {last_of(task)}});
            sources.push_back({"student", {{c.run.student(c.config.integer("distill.rounds")), ""}}});
        }
        if (c.config.flag("pipeline.mix")) sources.push_back({mix_policy, {last_of(mix_policy)}});
    }
    return sources;
}

/// Of a policy's newest iteration that is complete.
std::optional<std::string> newest_hash(const Context& c, const Weights& last) {
    const fs::path within = last.directory.filename() == "ema" ? "ema" : "";
    for (std::int64_t i = c.iterations(last.policy); i >= 1; --i)
        if (auto hash = stated_weights_hash(within.empty() ? c.run.policy(last.policy, i) : c.run.policy(last.policy, i) / within)) return hash;
    return std::nullopt;
}

/// As student_start() has it of a mean. `before`: in place of last weights that are still to be made the newest that there are. Nothing where one of
/// them is not complete.
std::optional<std::string> hash_of(const Context& c, const Source& source, bool before) {
    std::string text;
    for (const Weights& weights : source.weights) {
        auto hash = stated_weights_hash(weights.directory);
        if (!hash && before && !weights.policy.empty()) hash = newest_hash(c, weights);
        if (!hash) return std::nullopt;
        text += *hash;
    }
    return source.is_mean ? io::digest_bytes(text.data(), text.size()) : text;
}

/// Whether a complete job was made from something else than it would be made from now. Weights that are not there, and were not others before, are
/// made again as they were.
bool is_outdated(const Context& c, const Source& source, const std::string& stated) {
    if (const auto hash = hash_of(c, source, false)) return *hash != stated;
    return hash_of(c, source, true) == stated;
}

}  // namespace

void require_current(const Context& c, const std::vector<Job>& jobs, const std::vector<std::string>& names) {
    for (const std::string& name : names) job_of(jobs, name);
    const std::vector<bool> again = with_dependents(jobs, names);
    std::vector<std::string> outdated;
    std::string first;
    for (std::size_t i = 0; i < jobs.size(); ++i) {
        const fs::path output = c.run.root / jobs[i].output;
        if (again[i] || !fs::exists(output / io::manifest_name)) continue;
        std::optional<io::Manifest> manifest;
        for (const Source& source : sources_of(c, jobs[i])) {
            if (!manifest) manifest = io::read_manifest(output);
            const auto stated = manifest->inputs.find(source.name);
            const bool is_stated = stated != manifest->inputs.end();
            if (is_stated ? !is_outdated(c, source, stated->second.hash) : jobs[i].stage != "evaluate") continue;
            if (first.empty()) {
                std::vector<std::string> places;
                for (const Weights& weights : source.weights) places.push_back(weights.directory.lexically_relative(c.run.root).string());
                first = fmt::format("{} was made {} {}{}{}", jobs[i].name, is_stated ? "from another" : "without", source.name,
                                    is_stated ? fmt::format(" than {}", fmt::join(places, " and ")) : "", hash_of(c, source, false) ? "" : " (still to be made)");
            }
            outdated.push_back(jobs[i].name);
            break;
        }
    }
    if (outdated.empty()) return;
    outdated.insert(outdated.end(), names.begin(), names.end());
    ATELIER_FAIL(ErrorKind::usage, "{}; nothing was changed. It is made again, with all that comes after it, by --from {}", first,
                 fmt::join(without_dependents(jobs, outdated), ","));
}

std::vector<fs::path> outputs_made_again(const RunDirectory& run, const std::vector<Job>& jobs, const std::vector<std::string>& names) {
    for (const std::string& name : names) job_of(jobs, name);
    const std::vector<bool> again = with_dependents(jobs, names);
    if (const auto missing = first_missing(run, jobs, again)) {
        // Who made what is missing is made again too, until nothing is: what that takes is said.
        std::vector<std::string> more = names;
        for (auto m = missing; m; m = first_missing(run, jobs, with_dependents(jobs, more))) more.push_back(m->second.made_by->name);
        const auto& [job, need] = *missing;
        ATELIER_FAIL(ErrorKind::usage, "{} cannot be made again: {} has given up its {} ({}); nothing was removed. This can be done: --from {}", job->name,
                     need.made_by->output, need.is_state ? "optimizer's state" : "trajectories", need.is_state ? "storage.states" : "storage.keep",
                     fmt::join(without_dependents(jobs, more), ","));
    }
    std::vector<fs::path> paths;
    for (std::size_t i = jobs.size(); i-- > 0;) {
        if (!again[i]) continue;
        const fs::path states = states_of(run, jobs[i]);
        if (fs::exists(run.root / jobs[i].output)) paths.push_back(jobs[i].output);
        if (!states.empty() && fs::exists(run.root / states)) paths.push_back(states);
    }
    return paths;
}

}  // namespace atelier::stage
