#include "stage/evaluate.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <iostream>
#include <optional>
#include <set>
#include <utility>

#include "core/device_turn.hpp"
#include "core/progress.hpp"
#include "io/file_io.hpp"
#include "stage/evaluation_report.hpp"
#include "stage/picture_sizes.hpp"
#include "stage/run_model.hpp"
#include "stage/scorers.hpp"
#include "stage/stage_memory.hpp"
#include "stage/timeline.hpp"
#include "stage/truth_gap.hpp"

namespace atelier::stage {
namespace {

/// Plans and takes the memory for every task's prompts; all candidates have the same sizes.
void reserve(const Context& c, pipeline::Pipeline& model,
             const std::vector<Candidate>& candidates,
             const std::map<std::string, EvaluatedTask>& tasks, const Scoring& scoring,
             StageMemory& memory, Workspace& workspace) {
    EvaluationMemory m;
    m.guided = std::any_of(candidates.begin(), candidates.end(), [](const Candidate& each) { return each.guided; });
    m.candidates = candidates.size();
    std::vector<const Prompt*> prompts;
    for (const auto& [name, task] : tasks) {
        for (const Prompt& prompt : task.prompts) prompts.push_back(&prompt);
        m.pictures = std::max(m.pictures, task.pictures);
        m.rows.push_back(shown_prompts(task).size());
    }
    m.micro_batch = c.config.integer("rollout.micro_batch");
    m.shard_pictures = evaluation_shard_prompts * m.pictures;
    const ModelOutline outline =
        memory.add_model(c, model, {prompts.size(), [&](std::size_t i) { return *prompts[i]; }}, m.guided, static_cast<std::int64_t>(m.shard_pictures));
    m.scoring = scoring.memory(picture_bytes(outline.largest()));
    workspace.reserve(hold_evaluation(memory.plan, outline, m));
    memory.say(c);
}

/// `list`: the candidates before it.
void check_name(const Context& c, const std::vector<Candidate>& list, const std::string& name) {
    ATELIER_CHECK_USAGE(std::ranges::all_of(name, [](unsigned char x) { return std::isalnum(x) != 0 || x == '-' || x == '_'; }),
                        "model {}: a name of letters, digits, - and _ was expected", name);
    ATELIER_CHECK_USAGE(name.find("limit-") == std::string::npos, "model {}: limit- in a name stands for --limit in that of the evaluation's directory", name);
    std::vector<std::string> taken{"base", "base-guided", mix_policy, "student"};
    for (const std::string& task : c.config.tasks()) taken.push_back("teacher-" + task);
    for (const Candidate& each : list) taken.push_back(each.name);
    ATELIER_CHECK_USAGE(std::ranges::find(taken, name) == taken.end(), "model {}: that is another model's name already; choose one beside {}", name,
                        fmt::join(std::set(taken.begin(), taken.end()), ", "));
}

}  // namespace

std::vector<Candidate> candidates_of(const Context& c, const std::vector<std::string>& models, const std::vector<std::string>& guided_models) {
    const bool guides = c.config.number("sampling.guidance_scale") > 1 &&
                        c.config.text("sampling.guidance_train") != "none";
    std::vector<Candidate> list{{"base", c.base_transformer(), false}};
    if (guides) list.push_back({"base-guided", c.base_transformer(), true});
    // The same answer on every rank.
    const auto is_published = [&](const std::filesystem::path& directory) { return c.world->any(std::filesystem::exists(directory / io::manifest_name)); };
    const auto add_policy = [&](const std::string& policy, const std::string& name) {
        if (is_published(c.run.policy(policy, c.iterations(policy))))
            list.push_back({name, c.final_policy(policy), guides});
    };
    for (const std::string& task : c.config.tasks()) add_policy(task, "teacher-" + task);
    add_policy(mix_policy, mix_policy);
    const auto student = c.run.student(c.config.integer("distill.rounds"));
    if (is_published(student)) {
        require_complete(*c.world, student, "the student was changed", reads_weights);
        list.push_back({"student", student, false});
    }
    const auto add_further = [&](const std::string& text, const char* option, bool guided) {
        const auto equals = text.find('=');
        ATELIER_CHECK_USAGE(equals != std::string::npos && equals > 0, "--{} {}: NAME=DIRECTORY was expected", option, text);
        check_name(c, list, text.substr(0, equals));
        list.push_back({text.substr(0, equals), text.substr(equals + 1), guided, true});
        require_unchanged(*c.world, list.back().transformer);
    };
    for (const std::string& text : models) add_further(text, "model", false);
    ATELIER_CHECK_USAGE(guides || guided_models.empty(), "--guided-model {}: the run samples without guidance (sampling.guidance_scale, guidance_train); --model does",
                        guided_models[0]);
    for (const std::string& text : guided_models) add_further(text, "guided-model", true);
    return list;
}

std::filesystem::path evaluation_directory(const Context& c, const std::vector<Candidate>& candidates, std::int64_t limit) {
    // Names hold no "+" and no "limit-": other models, or another limit, are another directory.
    std::string further;
    for (const Candidate& candidate : candidates)
        if (candidate.further) further += (further.empty() ? "-" : "+") + candidate.name;
    std::string name = c.run.evaluation().filename().string() + further;
    if (limit > 0) name += fmt::format("-limit-{}", limit);
    return c.run.root / name;
}

bool is_same_evaluation(const io::Manifest& complete, const io::Manifest& asked) {
    return complete.inputs == asked.inputs && complete.config_hash == asked.config_hash &&
           complete.facts.value("limit", nlohmann::json()) == asked.facts.at("limit");
}

int run_evaluate(const Context& given, const std::vector<Candidate>& candidates,
                 std::int64_t limit) {
    Context c = given;
    const auto directory = evaluation_directory(c, candidates, limit);
    io::Manifest manifest = c.new_manifest("evaluate");
    StageMemory memory;
    manifest.facts = {{"limit", limit}};
    std::unique_ptr<io::DirectoryLock> lock;
    std::byte is_done{0};
    std::vector<std::string> hashes;  // of the candidates' weights, in their order
    for (const Candidate& candidate : candidates) hashes.push_back(weights_hash(*c.world, candidate.transformer));
    manifest.inputs = scorer_inputs(c);
    std::map<std::string, EvaluatedTask> tasks;
    std::map<std::string, std::vector<std::string>> inputs;  // of each task's shards
    std::int64_t total = 0;
    double pictures = 0;  // of all candidates
    for (const std::string& name : c.config.tasks()) {
        EvaluatedTask& task = tasks[name];
        task.prompts = read_prompts(c.config.text("task." + name + ".heldout"), name, c.kind(name));
        if (limit > 0 && static_cast<std::int64_t>(task.prompts.size()) > limit)
            task.prompts.resize(static_cast<std::size_t>(limit));
        task.pictures = static_cast<std::size_t>(c.config.integer("evaluate.samples"));
        total += static_cast<std::int64_t>(evaluation_shard_count(task) * candidates.size());
        pictures += static_cast<double>(task.prompts.size() * task.pictures * candidates.size());
        inputs[name] = evaluation_inputs(c, task, manifest.inputs);
    }
    for (const auto& [name, shards] : inputs) {
        const std::string text = fmt::format("{}", fmt::join(shards, ""));
        manifest.inputs["prompts/" + name] = {0, io::digest_bytes(text.data(), text.size())};
    }
    if (c.world->is_root()) {
        lock = std::make_unique<io::DirectoryLock>(directory);
        io::remove_temporaries(directory);
        for (std::size_t i = 0; i < candidates.size(); ++i) manifest.inputs[candidates[i].name + (candidates[i].further && candidates[i].guided ? "/guided" : "")] = {0, hashes[i]};
        if (io::is_complete(directory)) {
            is_done = std::byte{is_same_evaluation(io::read_manifest(directory), manifest)};
            if (is_done == std::byte{0}) {  // what it names is about to change
                log_line(directory.string() + " is of other models, prompts or another judge, and is made anew");
                std::filesystem::remove(directory / io::manifest_name);
            }
        }
        if (is_done != std::byte{0})
            log_line(directory.string() + " is complete already, of the same models");
    }
    c.world->broadcast(std::span(&is_done, 1), 0);
    if (is_done != std::byte{0}) {
        if (c.world->is_root()) std::cout << io::read_text(directory / "table.txt");
        return 0;
    }
    require_same_model(c);
    c.iteration = 0;  // no training iteration draws these sizes
    // One model at a time in memory; what is on the device outlives the judge's work there.
    std::optional<pipeline::Pipeline> model;
    Workspace workspace("sampling");
    Scoring scoring(c);
    Progress progress("evaluate", "shards", total, !c.world->is_root());
    std::int64_t done = 0;
    std::optional<EvaluationShard> scored;  // while the next is drawn
    Timeline timeline;
    std::map<std::string, ShardScores> mine;            // this rank's shards, by their names below the directory
    std::int64_t absent = 0;                            // of their pictures
    std::vector<std::filesystem::path> without_scores;
    const auto take = [&](const std::filesystem::path& shard, ShardScores scores) {
        absent += scores.absent;
        if (scores.absent > 0) without_scores.push_back(shard);
        mine[shard.lexically_relative(directory).generic_string()] = std::move(scores);
    };
    const auto publish_last = [&] {
        if (!scored) return;
        const std::filesystem::path shard = scored->path;
        timeline.measure("publish", done, [&] { take(shard, publish_evaluation_shard(std::exchange(scored, std::nullopt).value())); });
    };
    const auto require_scores = [&] {
        const double most = c.config.number("reward.max_absent");
        double sum = static_cast<double>(absent);
        c.world->sum(std::span(&sum, 1));
        if (sum <= 0 || sum / pictures <= most) return;
        publish_last();
        for (const auto& shard : without_scores) std::filesystem::remove(shard);
        c.world->barrier();
        ATELIER_FAIL(ErrorKind::reward,
                     "{} of {} held-out pictures could not be scored, more than reward.max_absent = {} allows; their shards were removed and a rerun asks "
                     "again",
                     sum, pictures, most);
    };
    for (std::size_t i = 0; i < candidates.size(); ++i) {
        const Candidate& candidate = candidates[i];
        {
            const DeviceTurn turn(c.device());
            model.reset();
            model.emplace(c.model(), candidate.transformer, c.placement());
            if (i == 0) reserve(c, *model, candidates, tasks, scoring, memory, workspace);
        }
        for (const auto& [name, task] : tasks) {
            c.policy = name;
            const rl::SamplingSpec spec = c.sampling(*model);
            const auto place = std::filesystem::path(candidate.name) / name, shards = directory / place;
            if (c.world->is_root()) {
                std::filesystem::create_directories(shards);
                io::remove_temporaries(shards);
            }
            c.world->barrier();
            const auto ranks = static_cast<std::size_t>(c.world->size());
            const std::size_t count = evaluation_shard_count(task);
            for (std::size_t first = 0; first < count; first += ranks) {
                if (stop_was_asked(*c.world)) {
                    publish_last();
                    if (c.world->is_root())
                        log_line(fmt::format("stopped by a signal; {} of {} shards are published",
                                             done, total));
                    return static_cast<int>(ErrorKind::requeue);
                }
                require_scores();
                const std::size_t number = first + static_cast<std::size_t>(c.world->rank());
                const EvaluationUnit unit{number, candidate.name, candidate.guided, hashes[i], number < count ? inputs.at(name)[number] : ""};
                std::optional<ShardScores> found;
                if (number < count) found = find_evaluation_shard(c, shards, task, unit);
                if (number < count && !found && directory != c.run.evaluation())
                    found = adopt_evaluation_shard(c, c.run.evaluation() / place, shards, task, unit);
                if (found) {
                    take(shards / GroupRollout::shard_name(number), std::move(*found));
                } else if (number < count) {
                    auto drawn = timeline.measure("sampling", done, [&, &task = task] {
                        return draw_evaluation_shard(c, *model, spec, task, unit, shards, scoring, workspace);
                    });
                    publish_last();
                    scored = std::move(drawn);
                }
                done += static_cast<std::int64_t>(std::min(ranks, count - first));
                progress.update(done);
            }
        }
    }
    publish_last();
    {
        const DeviceTurn turn(c.device());
        model.reset();
    }
    require_scores();
    timeline.publish(*c.world, directory);
    const auto all = gather_scores(*c.world, mine);
    if (!c.world->is_root()) return 0;
    std::vector<std::string> names;
    for (const Candidate& candidate : candidates) names.push_back(candidate.name);
    for (auto& [name, task] : tasks)
        for (const Candidate& candidate : candidates) {
            auto& samples = task.models.emplace_back(task.prompts.size() * task.pictures);
            for (std::size_t unit = 0; unit < evaluation_shard_count(task); ++unit) {
                const std::string shard = candidate.name + "/" + name + "/" + GroupRollout::shard_name(unit);
                take_scores(all.at(shard), samples);
                manifest.outputs[shard] = all.at(shard).digest;
            }
            read_pictures(c, directory / candidate.name / name, task, shown_prompts(task), samples);
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
    for (auto& [name, task] : tasks) {
        const std::string sheet = "contact-" + name + ".png";
        io::publish_file(directory / sheet, [&, &task = task](const std::filesystem::path& temporary) {
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
