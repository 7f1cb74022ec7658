#include "stage/evaluate.hpp"

#include <algorithm>
#include <fstream>
#include <iostream>

#include "core/progress.hpp"
#include "stage/evaluation_report.hpp"
#include "stage/scorers.hpp"
#include "stage/stage_memory.hpp"
#include "stage/truth_gap.hpp"

namespace atelier::stage {
namespace {

/// Plans and takes the memory for every task's prompts; all candidates have the same sizes.
void reserve(const Context& given, pipeline::Pipeline& model,
             const std::vector<Candidate>& candidates,
             const std::map<std::string, EvaluatedTask>& tasks, const Scoring& scoring,
             StageMemory& memory, Workspace& workspace) {
    Context c = given;
    const bool guides = std::any_of(candidates.begin(), candidates.end(),
                                    [](const Candidate& each) { return each.guided; });
    std::vector<const Prompt*> prompts;
    std::size_t pictures = 0, sampling = 0, next = 0;
    for (const auto& [name, task] : tasks) {
        for (const Prompt& prompt : task.prompts) prompts.push_back(&prompt);
        pictures = std::max(pictures, evaluation_shard_prompts * task.pictures);
    }
    const auto outlines =
        memory.add_model(c, model, prompts, guides, static_cast<std::int64_t>(pictures));
    dit::Grid target;
    for (const auto& [name, task] : tasks) {
        c.policy = name;
        const rl::SamplingSpec spec = c.sampling(model);
        target = spec.target;
        for (std::size_t i = 0; i < task.prompts.size(); ++i)
            sampling = std::max(
                sampling, evaluation_bytes(model, outlines.at(next++), spec, guides, task));
    }
    workspace.reserve(sampling);
    memory.plan.hold_during("drawing", "sampling", sampling);
    const auto waiting = std::min<std::size_t>(
        pictures, static_cast<std::size_t>(c.config.integer("reward.queue") +
                                           c.config.integer("reward.workers")));
    memory.plan.hold_during("drawing", "pictures to score", waiting * picture_bytes(target));
    memory.plan.hold_during("drawing", "judge", scoring.bytes(picture_bytes(target)));
    memory.plan.hold_during(
        "drawing", "shard to write",
        2 * pictures * sample_bytes(target, model.dit().config().in_channels, 0, 0));
    std::size_t shown = 0, widest = 0;
    for (const auto& [name, task] : tasks) {
        const std::size_t rows = shown_prompts(task).size();
        shown += rows * candidates.size();
        widest = std::max(widest, rows * (candidates.size() + 1));
    }
    memory.plan.hold_during("reporting", "shown pictures", shown * picture_bytes(target));
    memory.plan.hold_during("reporting", "contact sheet", widest * picture_bytes(target));
    memory.say(c);
}

}  // namespace

std::vector<Candidate> candidates_of(const Context& c, const std::vector<std::string>& extra) {
    const bool guides = c.config.number("sampling.guidance_scale") > 1 &&
                        c.config.text("sampling.guidance_train") != "none";
    std::vector<Candidate> list{{"base", c.base_transformer(), false}};
    if (guides) list.push_back({"base-guided", c.base_transformer(), true});
    const auto add_policy = [&](const std::string& policy, const std::string& name) {
        if (std::filesystem::exists(c.run.policy(policy, c.iterations(policy)) / io::manifest_name))
            list.push_back({name, c.final_policy(policy), guides});
    };
    for (const std::string& task : c.config.tasks()) add_policy(task, "teacher-" + task);
    add_policy(mix_policy, mix_policy);
    const auto student = c.run.student(c.config.integer("distill.rounds"));
    if (std::filesystem::exists(student / io::manifest_name)) {
        require_complete(student, "the student was changed");
        list.push_back({"student", student, false});
    }
    for (const std::string& text : extra) {
        const auto equals = text.find('=');
        ATELIER_CHECK_USAGE(equals != std::string::npos && equals > 0,
                            "--model {}: NAME=DIRECTORY was expected", text);
        list.push_back({text.substr(0, equals), text.substr(equals + 1), false});
    }
    return list;
}

int run_evaluate(const Context& given, const std::vector<Candidate>& candidates,
                 std::int64_t limit) {
    Context c = given;
    const auto directory = c.run.evaluation();
    io::Manifest manifest = c.new_manifest("evaluate");
    StageMemory memory;
    manifest.facts = {{"limit", limit}};
    std::unique_ptr<io::DirectoryLock> lock;
    std::byte is_done{0};
    if (c.world->is_root()) {
        lock = std::make_unique<io::DirectoryLock>(directory);
        io::remove_temporaries(directory);
        manifest.inputs = scorer_inputs(c);
        for (const Candidate& candidate : candidates)
            manifest.inputs[candidate.name] = {0, weights_hash(candidate.transformer)};
        if (io::is_complete(directory)) {
            const io::Manifest before = io::read_manifest(directory);
            if (before.inputs == manifest.inputs && before.config_hash == manifest.config_hash &&
                before.facts == manifest.facts)
                is_done = std::byte{1};
            else  // what it names is about to change
                std::filesystem::remove(directory / io::manifest_name);
        }
        if (is_done != std::byte{0})
            log_line(directory.string() + " is complete already, of the same models");
    }
    c.world->broadcast(std::span(&is_done, 1), 0);
    if (is_done != std::byte{0}) {
        if (c.world->is_root()) std::cout << std::ifstream(directory / "table.txt").rdbuf();
        return 0;
    }
    std::map<std::string, EvaluatedTask> tasks;
    std::int64_t total = 0;
    for (const std::string& name : c.config.tasks()) {
        EvaluatedTask& task = tasks[name];
        task.prompts = read_prompts(c.config.text("task." + name + ".heldout"), name, c.kind(name));
        if (limit > 0 && static_cast<std::int64_t>(task.prompts.size()) > limit)
            task.prompts.resize(static_cast<std::size_t>(limit));
        task.pictures = static_cast<std::size_t>(c.config.integer("evaluate.samples"));
        total += static_cast<std::int64_t>(evaluation_shard_count(task) * candidates.size());
    }
    Scoring scoring(c);
    Workspace workspace("sampling");
    Progress progress("evaluate", "shards", total, !c.world->is_root());
    std::int64_t done = 0;
    for (const Candidate& candidate : candidates) {
        const std::string model_hash = weights_hash(candidate.transformer);
        pipeline::Pipeline model(c.model(), candidate.transformer);  // one at a time in memory
        if (&candidate == &candidates.front())
            reserve(c, model, candidates, tasks, scoring, memory, workspace);
        for (const auto& [name, task] : tasks) {
            c.policy = name;
            const rl::SamplingSpec spec = c.sampling(model);
            const auto shards = evaluation_shards(c, candidate.name, name);
            if (c.world->is_root()) {
                std::filesystem::create_directories(shards);
                io::remove_temporaries(shards);
            }
            c.world->barrier();
            const auto ranks = static_cast<std::size_t>(c.world->size());
            const std::size_t count = evaluation_shard_count(task);
            for (std::size_t first = 0; first < count; first += ranks) {
                if (stop_was_asked(*c.world)) {
                    if (c.world->is_root())
                        log_line(fmt::format("stopped by a signal; {} of {} shards are published",
                                             done, total));
                    return static_cast<int>(ErrorKind::requeue);
                }
                const std::size_t unit = first + static_cast<std::size_t>(c.world->rank());
                if (unit < count &&
                    !has_evaluation_shard(c, shards, unit, task, model_hash, candidate.guided))
                    make_evaluation_shard(c, model, spec, candidate, model_hash, task, unit, shards,
                                          scoring, workspace);
                done += static_cast<std::int64_t>(std::min(ranks, count - first));
                progress.update(done);
            }
        }
    }
    c.world->barrier();
    if (!c.world->is_root()) return 0;
    std::vector<std::string> names;
    for (const Candidate& candidate : candidates) names.push_back(candidate.name);
    for (auto& [name, task] : tasks)
        for (const Candidate& candidate : candidates) {
            task.models.push_back(read_evaluation(c, evaluation_shards(c, candidate.name, name),
                                                  task, shown_prompts(task)));
            for (std::size_t unit = 0; unit < evaluation_shard_count(task); ++unit)
                manifest.outputs[candidate.name + "/" + name + "/" +
                                 GroupRollout::shard_name(unit)] = {};
        }
    nlohmann::json summary = evaluation_summary(names, tasks);
    std::string table = evaluation_table(summary, names);
    if (const nlohmann::json truth = truth_summary(names, tasks); !truth.is_null()) {
        table += fmt::format("\nthe same pictures by the truth (reward.truth = \"{}\")\n",
                             c.config.text("reward.truth")) +
                 evaluation_table(truth, names);
        summary["truth"] = truth;
    }
    manifest.task = "";
    io::publish_text(directory / "summary.json", summary.dump(1) + "\n");
    io::publish_text(directory / "table.txt", table);
    manifest.outputs["summary.json"] = manifest.outputs["table.txt"] = {};
    for (const auto& [name, task] : tasks) {
        const std::string sheet = "contact-" + name + ".png";
        io::publish_file(directory / sheet, [&](const std::filesystem::path& temporary) {
            write_contact_sheet(temporary, names, task);
        });
        manifest.outputs[sheet] = {};
    }
    if (const std::string curve = gap_curve(c.run.metrics()); !curve.empty()) {
        io::publish_text(directory / "truth-gap.svg", curve);
        manifest.outputs["truth-gap.svg"] = {};
    }
    memory.finish(c, manifest);
    io::publish_manifest(directory, manifest);
    std::cout << table << (directory / "summary.json").string() << '\n';
    for (const auto& [name, task] : tasks)
        std::cout << (directory / ("contact-" + name + ".png")).string() << '\n';
    return 0;
}

}  // namespace atelier::stage
