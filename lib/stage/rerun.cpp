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

/// Weights that a job takes, as its manifest calls them.
struct Source {
    std::string name;
    std::vector<fs::path> directories;
    bool is_mean = false;  ///< of all of them; else there is one
    bool is_last = true;   ///< which of a policy's weights it is follows from how many iterations there are
};

std::string argument_of(const Job& job, const std::string& option) {
    const auto found = std::ranges::find(job.arguments, option);
    ATELIER_CHECK(found != job.arguments.end() && std::next(found) != job.arguments.end(), "{} has no {}", job.name, option);
    return *std::next(found);
}

/// Those that other jobs of the run made. The base is the same for all of a run (run_model.hpp).
std::vector<Source> sources_of(const Context& c, const Job& job) {
    const std::vector<std::string> tasks = c.config.tasks();
    if (job.stage == "rollout") {
        const std::int64_t iteration = std::stoll(argument_of(job, "--iteration"));
        if (iteration > 1) return {{"policy", {c.run.policy(argument_of(job, "--policy"), iteration - 1)}, false, false}};
    } else if (job.stage == "teacher-dump") {
        std::vector<Source> sources{{"teacher", {c.final_directory(argument_of(job, "--task"))}}};
        const std::int64_t round = std::stoll(argument_of(job, "--round"));
        if (round > 1) {
            sources.push_back({"student", {c.run.student(round - 1)}, false, false});
        } else if (c.config.text("distill.start") == "average") {
            sources.push_back({"student", {}, true});
            for (const std::string& task : tasks) sources.back().directories.push_back(c.final_directory(task));
        }
        return sources;
    } else if (job.stage == "evaluate") {
        std::vector<Source> sources;
        if (c.config.flag("pipeline.teachers")) {
            for (const std::string& task : tasks) sources.push_back({"teacher-" + task, {c.final_directory(task)}});
            sources.push_back({"student", {c.run.student(c.config.integer("distill.rounds"))}});
        }
        if (c.config.flag("pipeline.mix")) sources.push_back({mix_policy, {c.final_directory(mix_policy)}});
        return sources;
    }
    return {};
}

/// As student_start() has it of a mean. Nothing where one of them is not complete.
std::optional<std::string> hash_of(const Source& source) {
    std::string text;
    for (const fs::path& directory : source.directories) {
        const auto hash = stated_weights_hash(directory);
        if (!hash) return std::nullopt;
        text += *hash;
    }
    return source.is_mean ? io::digest_bytes(text.data(), text.size()) : text;
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
            const auto hash = hash_of(source);
            const bool is_stated = stated != manifest->inputs.end();
            if (is_stated ? stated->second.hash == hash || (!hash && !source.is_last) : jobs[i].stage != "evaluate") continue;
            if (first.empty()) {
                std::vector<std::string> places;
                for (const fs::path& directory : source.directories) places.push_back(directory.lexically_relative(c.run.root).string());
                first = fmt::format("{} was made {} {}{}{}", jobs[i].name, is_stated ? "from another" : "without", source.name,
                                    is_stated ? fmt::format(" than {}", fmt::join(places, " and ")) : "", hash ? "" : " (still to be made)");
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
