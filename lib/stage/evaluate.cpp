#include "stage/evaluate.hpp"

#include <fstream>
#include <iostream>

#include "core/progress.hpp"
#include "flow/noise.hpp"
#include "pipeline/generate.hpp"
#include "stage/evaluation_report.hpp"
#include "stage/group_rollout.hpp"

namespace atelier::stage {
namespace {

using Json = nlohmann::json;

// Iteration number of evaluation seeds: no training iteration has it.
constexpr std::uint64_t evaluation_iteration = ~std::uint64_t{0};

/// The pictures of one prompt, not yet scored.
struct Drawn {
    std::size_t prompt = 0;
    io::TrajectorySamples samples;
    std::vector<std::future<reward::Outcome>> outcomes;
};

Drawn draw(pipeline::Pipeline& model, const Context& c, const rl::SamplingSpec& spec, bool guided,
           const EvaluatedTask& task, std::size_t index, const std::string& name,
           Scoring& scoring) {
    const Prompt& prompt = task.prompts[index];
    const EncodedPair pair = encode_pair(model, c, prompt, guided);
    pipeline::GenerateRequest r;
    r.conditional = &pair.conditional;
    r.unconditional = guided ? &pair.unconditional : nullptr;
    r.guidance = spec.guidance;
    r.schedule = spec.schedule;
    r.target = spec.target;
    r.batch = static_cast<std::int64_t>(task.pictures);
    const std::int64_t channels = model.dit().config().in_channels,
                       n = spec.target.tokens() * channels;
    Drawn drawn;
    drawn.prompt = index;
    io::TrajectorySamples& s = drawn.samples;
    s.height = spec.target.height;
    s.width = spec.target.width;
    s.channels = channels;
    s.latents.resize(task.pictures * static_cast<std::size_t>(n));
    for (std::size_t m = 0; m < task.pictures; ++m) {
        s.sample_id.push_back(index * task.pictures + m);
        const auto key = flow::sample_noise_key(c.seed(), evaluation_iteration,
                                                task_number(name) ^ prompt.number, m);
        fill_normal(flow::initial_noise_key(key),
                    std::span(s.latents).subspan(m * static_cast<std::size_t>(n),
                                                 static_cast<std::size_t>(n)));
    }
    pipeline::generate_latents(model.dit(), model.dit_weights(), r, s.latents);
    decode_pictures(model, s);
    drawn.outcomes = scoring.submit(prompt, s);
    return drawn;
}

/// Samples travel to every rank as JSON with the pictures' bytes inside.
void exchange(comm::Communicator& world, std::vector<Drawn>& mine,
              std::vector<EvaluatedSample>& samples, std::size_t pictures) {
    Json list = Json::array();
    for (Drawn& d : mine) {
        const std::size_t bytes = d.samples.picture.size() / pictures;
        for (std::size_t m = 0; m < pictures; ++m) {
            const reward::Outcome outcome = d.outcomes[m].get();
            ATELIER_CHECK_KIND(ErrorKind::reward, !outcome.failed,
                               "a held-out picture could not be scored: {}",
                               outcome.verdicts.begin()->second.reason);
            Json scores = Json::object();
            for (const auto& [name, verdict] : outcome.verdicts)
                if (verdict.present) scores[name] = verdict.score;
            const auto begin = d.samples.picture.begin() + static_cast<std::ptrdiff_t>(m * bytes);
            list.push_back({{"i", d.prompt * pictures + m},
                            {"s", scores},
                            {"w", d.samples.picture_width},
                            {"h", d.samples.picture_height},
                            {"p", Json::binary(std::vector<std::uint8_t>(
                                      begin, begin + static_cast<std::ptrdiff_t>(bytes)))}});
        }
    }
    const auto bytes = Json::to_cbor(list);
    for (const auto& part : world.gather(std::as_bytes(std::span(bytes)))) {
        const auto* data = reinterpret_cast<const std::uint8_t*>(part.data());
        for (const Json& entry :
             Json::from_cbor(std::vector<std::uint8_t>(data, data + part.size()))) {
            EvaluatedSample& s = samples.at(entry.at("i").get<std::size_t>());
            s.scores = entry.at("s").get<std::map<std::string, double>>();
            s.picture.width = entry.at("w");
            s.picture.height = entry.at("h");
            s.picture.channels = 4;
            s.picture.pixels = entry.at("p").get_binary();
        }
    }
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
    manifest.facts = {{"limit", limit}};
    std::unique_ptr<io::DirectoryLock> lock;
    std::byte is_done{0};
    if (c.world->is_root()) {
        // eval/ is published as a whole: its right stands beside it.
        lock = std::make_unique<io::DirectoryLock>(c.run.root / "eval.lock");
        io::remove_temporaries(c.run.root, directory.filename().string());
        for (const Candidate& candidate : candidates)
            manifest.inputs[candidate.name] = {0, weights_hash(candidate.transformer)};
        if (io::is_complete(directory)) {
            const io::Manifest before = io::read_manifest(directory);
            if (before.inputs == manifest.inputs && before.config_hash == manifest.config_hash &&
                before.facts == manifest.facts)
                is_done = std::byte{1};
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
        total += static_cast<std::int64_t>(task.prompts.size() * task.pictures * candidates.size());
    }
    Scoring scoring(c);
    Progress progress("evaluate", "pictures", total, !c.world->is_root());
    std::int64_t done = 0;
    std::vector<std::string> names;
    const auto ranks = static_cast<std::size_t>(c.world->size());
    for (const Candidate& candidate : candidates) {
        names.push_back(candidate.name);
        pipeline::Pipeline model(c.model(), candidate.transformer);  // one at a time in memory
        for (auto& [name, task] : tasks) {
            c.policy = name;
            const rl::SamplingSpec spec = c.sampling(model);
            std::vector<Drawn> mine;
            for (std::size_t first = 0; first < task.prompts.size(); first += ranks) {
                if (stop_was_asked(*c.world)) {
                    if (c.world->is_root())
                        log_line("stopped by a signal before the evaluation was complete");
                    return static_cast<int>(ErrorKind::requeue);
                }
                const std::size_t i = first + static_cast<std::size_t>(c.world->rank());
                if (i < task.prompts.size())
                    mine.push_back(draw(model, c, spec, candidate.guided, task, i, name, scoring));
                done += static_cast<std::int64_t>(std::min(ranks, task.prompts.size() - first) *
                                                  task.pictures);
                progress.update(done);
            }
            task.models.emplace_back(task.prompts.size() * task.pictures);
            exchange(*c.world, mine, task.models.back(), task.pictures);
        }
    }
    if (!c.world->is_root()) return 0;
    const Json summary = evaluation_summary(names, tasks);
    const std::string table = evaluation_table(summary, names);
    manifest.task = "";
    io::publish_directory(directory, [&](const std::filesystem::path& temporary) {
        io::publish_text(temporary / "summary.json", summary.dump(1) + "\n");
        io::publish_text(temporary / "table.txt", table);
        manifest.outputs = {{"summary.json", {}}, {"table.txt", {}}};
        for (const auto& [name, task] : tasks) {
            const std::string sheet = "contact-" + name + ".png";
            write_contact_sheet(temporary / sheet, names, task);
            manifest.outputs[sheet] = {};
        }
        io::publish_manifest(temporary, manifest);
    });
    std::cout << table << (directory / "summary.json").string() << '\n';
    for (const auto& [name, task] : tasks)
        std::cout << (directory / ("contact-" + name + ".png")).string() << '\n';
    return 0;
}

}  // namespace atelier::stage
