#include "stage/dag.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>

#include "stage/schema.hpp"

namespace atelier::stage {
namespace {

std::string relative(const Context& c, const std::filesystem::path& path) {
    return path.lexically_relative(c.run.root).string();
}

/// Rollouts and updates of one policy; returns the name of the last update.
std::string add_policy(const Context& c, const std::string& policy,
                       const std::vector<std::string>& first, std::vector<Job>& jobs) {
    std::vector<std::string> after = first;
    for (std::int64_t i = 1; i <= c.iterations(policy); ++i) {
        const std::vector<std::string> arguments{"--policy", policy, "--iteration",
                                                 std::to_string(i)};
        const std::string rollout = fmt::format("rollout-{}-{:04}", policy, i),
                          grpo = fmt::format("grpo-{}-{:04}", policy, i);
        jobs.push_back(
            {rollout, "rollout", arguments, after, relative(c, c.run.rollout(policy, i))});
        jobs.push_back({grpo, "grpo", arguments, {rollout}, relative(c, c.run.policy(policy, i))});
        after = {grpo};
    }
    return after[0];
}

struct Resources {
    std::int64_t ranks, nodes, gpus;
    std::string memory, time;
};
Resources resources(const Job& job, const config::Config& c) {
    const std::string prefix = "slurm." + job.stage + ".";
    return {c.integer(prefix + "ranks"), c.integer(prefix + "nodes"),
            c.integer(prefix + "gpus_per_node"), c.text(prefix + "memory"),
            c.text(prefix + "time")};
}

/// slurm.tsv holds a value a line, and the scripts hand options on as they are.
void check_texts_of_slurm(const config::Config& c) {
    const auto check_line = [](const std::string& key, const std::string& value) {
        ATELIER_CHECK_USAGE(value.find_first_of("\t\n\r") == std::string::npos, "{} = \"{}\": one line without tabs was expected", key, value);
    };
    const auto check_options = [&](const std::string& key) {
        for (const std::string& option : c.list(key)) {
            check_line(key, option);
            ATELIER_CHECK_USAGE(option.starts_with("-"), "{} has \"{}\": an option of sbatch with its value in one text was expected, as --qos=low", key,
                                option);
        }
    };
    for (const char* key : {"slurm.partition", "slurm.account", "slurm.launcher", "slurm.setup"}) check_line(key, c.text(key));
    check_options("slurm.options");
    for (const char* stage : stages_with_resources) {
        const std::string prefix = fmt::format("slurm.{}.", stage);
        check_line(prefix + "partition", c.text(prefix + "partition"));
        check_options(prefix + "options");
    }
}

}  // namespace

std::vector<Job> pipeline_jobs(const Context& c) {
    check_texts_of_slurm(c.config);
    const auto tasks = c.config.tasks();
    ATELIER_CHECK_USAGE(!tasks.empty(), "the configuration has no [task.NAME] section");
    const bool teaches = c.config.flag("pipeline.teachers"), mixes = c.config.flag("pipeline.mix");
    ATELIER_CHECK_USAGE(
        teaches || mixes,
        "pipeline.teachers and pipeline.mix are both off: there is nothing to train");
    ATELIER_CHECK_USAGE(!teaches || c.config.integer("lora.rank") == 0 || c.config.text("distill.start") == "base",
                        "with lora.rank = {} distill.start must be base, found {}", c.config.integer("lora.rank"),
                        c.config.text("distill.start"));
    ATELIER_CHECK_USAGE(c.config.integer("lora.rank") == 0 || c.config.integer("compute.zero") <= 1,
                        "with lora.rank = {} compute.zero must be 0 or 1, found {}: an adapter's gradients and the weights beside it are not "
                        "cut over ranks", c.config.integer("lora.rank"), c.config.integer("compute.zero"));
    ATELIER_CHECK_USAGE(!c.config.flag("pipeline.judge") || c.config.integer("reward_train.lora_rank") == 0 || c.config.integer("compute.zero") <= 1,
                        "with reward_train.lora_rank = {} compute.zero must be 0 or 1, found {}: an adapter's gradients and the weights beside it "
                        "are not cut over ranks", c.config.integer("reward_train.lora_rank"), c.config.integer("compute.zero"));
    std::vector<Job> jobs;
    std::map<std::string, std::vector<std::string>> curated;
    std::vector<std::string> all_curated, ends, judged;
    if (c.config.flag("pipeline.judge")) {
        jobs.push_back({"reward-train", "reward-train", {}, {}, relative(c, c.run.judge())});
        judged = {"reward-train"};
    }
    if (!c.config.flag("curate.enabled")) all_curated = judged;
    for (const std::string& task : tasks) {
        // Names in the run's directory.
        for (const char* taken : {mix_policy, "eval", "failed", "judge", "judge-training", "logs", "opd", "prompts", "report", "student", "tb"})
            ATELIER_CHECK_USAGE(task != taken && !task.starts_with("eval-"), "a task cannot be named {}: the run keeps something else under that name", task);
        curated[task] = judged;
        if (!c.config.flag("curate.enabled")) continue;
        jobs.push_back({"curate-" + task,
                        "curate",
                        {"--task", task},
                        judged,
                        relative(c, c.run.curation(task))});
        curated[task] = {"curate-" + task};
        all_curated.push_back("curate-" + task);
    }
    if (teaches) {
        std::vector<std::string> teachers;
        for (const std::string& task : tasks)
            teachers.push_back(add_policy(c, task, curated[task], jobs));
        std::string student;
        for (std::int64_t r = 1; r <= c.config.integer("distill.rounds"); ++r) {
            std::vector<std::string> dumps;
            for (std::size_t t = 0; t < tasks.size(); ++t) {
                // The first round's start may be made from all teachers.
                std::vector<std::string> after = c.config.text("distill.start") == "average"
                                                     ? teachers
                                                     : std::vector<std::string>{teachers[t]};
                if (r > 1) after = {student};
                dumps.push_back(fmt::format("teacher-dump-{}-{:02}", tasks[t], r));
                jobs.push_back({dumps.back(),
                                "teacher-dump",
                                {"--task", tasks[t], "--round", std::to_string(r)},
                                after,
                                relative(c, c.run.dump(r, tasks[t]))});
            }
            student = fmt::format("distill-{:02}", r);
            jobs.push_back({student,
                            "distill",
                            {"--round", std::to_string(r)},
                            dumps,
                            relative(c, c.run.student(r))});
        }
        ends.push_back(student);
    }
    if (mixes) ends.push_back(add_policy(c, mix_policy, all_curated, jobs));
    jobs.push_back({"evaluate", "evaluate", {}, ends, relative(c, c.run.evaluation())});
    return jobs;
}

std::string to_dot(const std::vector<Job>& jobs) {
    std::string text = "digraph pipeline {\n    rankdir = LR;\n    node [shape = box];\n";
    for (const Job& job : jobs) text += fmt::format("    \"{}\";\n", job.name);
    for (const Job& job : jobs)
        for (const std::string& before : job.after)
            text += fmt::format("    \"{}\" -> \"{}\";\n", before, job.name);
    return text + "}\n";
}

std::string to_text(const std::vector<Job>& jobs) {
    std::string text;
    for (const Job& job : jobs)
        text += job.after.empty()
                    ? job.name + "\n"
                    : fmt::format("{:<28} after {}\n", job.name, fmt::join(job.after, ", "));
    return text;
}

std::string to_json(const std::vector<Job>& jobs, const config::Config& config) {
    auto list = nlohmann::json::array();
    for (const Job& job : jobs) {
        const Resources r = resources(job, config);
        list.push_back({{"name", job.name},
                        {"program", "atelier-" + job.stage},
                        {"arguments", job.arguments},
                        {"after", job.after},
                        {"output", job.output},
                        {"ranks", r.ranks},
                        {"nodes", r.nodes},
                        {"gpus_per_node", r.gpus},
                        {"memory", r.memory},
                        {"time", r.time}});
    }
    return nlohmann::json{{"schema", "atelier.pipeline"}, {"schema_version", 1}, {"jobs", list}}
               .dump(1) +
           "\n";
}

std::string to_tsv(const std::vector<Job>& jobs, const config::Config& config) {
    std::string text;
    for (const Job& job : jobs) {
        const Resources r = resources(job, config);
        text += fmt::format(
            "{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\n", job.name, job.stage,
            job.arguments.empty() ? "-" : fmt::format("{}", fmt::join(job.arguments, " ")),
            job.after.empty() ? "-" : fmt::format("{}", fmt::join(job.after, ",")), job.output,
            r.ranks, r.nodes, r.memory, r.time, r.gpus);
    }
    return text;
}

std::string slurm_settings(const config::Config& c) {
    // The programs beside the one that plans.
    const auto bin = std::filesystem::read_symlink("/proc/self/exe").parent_path();
    std::string text = fmt::format(
        "bin\t{}\npartition\t{}\naccount\t{}\nlauncher\t{}\nsetup\t{}\nstop_early\t{}\nthreads\t{}\n",
        bin.string(), c.text("slurm.partition"), c.text("slurm.account"), c.text("slurm.launcher"), c.text("slurm.setup"),
        c.integer("slurm.stop_early"), c.integer("compute.threads"));
    // Only jobs that ask a judge over HTTP are given the variable that holds its key.
    if (!c.text("judge.key_variable").empty())
        text += "key_variable\t" + c.text("judge.key_variable") + "\nkey_stages\t" +
                (c.text("reward.scorer") == "http" ? "curate,rollout,evaluate" : "-") + "\n";
    for (const std::string& option : c.list("slurm.options")) text += "option\t" + option + "\n";
    // Of what sbatch is told twice it takes the last.
    for (const std::string stage : stages_with_resources) {
        const std::string prefix = "slurm." + stage + ".", &partition = c.text(prefix + "partition");
        if (!partition.empty()) text += fmt::format("option.{}\t--partition={}\n", stage, partition);
        for (const std::string& option : c.list(prefix + "options")) text += fmt::format("option.{}\t{}\n", stage, option);
    }
    return text;
}

}  // namespace atelier::stage
