#include "stage/reward_train.hpp"

#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>

#include "core/progress.hpp"
#include "io/metrics.hpp"
#include "ops/backend.hpp"
#include "optim/learning_rate.hpp"
#include "stage/judge_report.hpp"
#include "stage/reward_train_memory.hpp"
#include "stage/scoring.hpp"
#include "stage/snapshots.hpp"
#include "stage/stage_memory.hpp"

namespace atelier::stage {
namespace {

namespace fs = std::filesystem;
using Labels = std::vector<judge::LabelledSample>;

/// A sample, or a preference: the first is better.
struct Item {
    std::size_t first = 0, second = 0;
};

/// What an epoch goes through: every sample once; pairwise, each that applies with a partner of its dimension
/// whose label differs, of the same prompt where there is one. Depends on (seed, epoch) alone.
std::vector<Item> draw_items(const Context& c, const Labels& labels, bool pairwise,
                             std::int64_t epoch) {
    std::vector<Item> items;
    Random random(random_key(c.seed(), RandomUse::data_order, task_number("reward-train pairs"),
                             static_cast<std::uint64_t>(epoch)));
    for (const std::size_t i : draw_order(c.seed(), task_number("reward-train"), static_cast<std::uint64_t>(epoch), labels.size())) {
        if (!pairwise) {
            items.push_back({i, i});
            continue;
        }
        if (!labels[i].applies()) continue;
        std::vector<std::size_t> same_prompt, others;
        for (std::size_t j = 0; j < labels.size(); ++j) {
            const judge::LabelledSample &a = labels[i], &b = labels[j];
            if (!b.applies() || a.kind != b.kind || a.dimension != b.dimension || a.mean_score() == b.mean_score())
                continue;
            (a.prompt == b.prompt ? same_prompt : others).push_back(j);
        }
        const auto& partners = same_prompt.empty() ? others : same_prompt;
        if (partners.empty()) continue;
        const std::size_t j = partners[random.below(partners.size())];
        const bool ahead = labels[i].mean_score() > labels[j].mean_score();
        items.push_back({ahead ? i : j, ahead ? j : i});
    }
    ATELIER_CHECK_INPUT(!items.empty(), "no two labels of a dimension differ: no preference to "
                        "learn from");
    return items;
}

/// Every file that is there so far is an output.
void name_outputs(const fs::path& directory, io::Manifest& manifest) {
    for (const auto& entry : fs::recursive_directory_iterator(directory))
        if (entry.is_regular_file()) manifest.outputs[entry.path().lexically_relative(directory).string()] = {};
}

/// What a stage has behind it: kept with its snapshots.
struct EpochSoFar {
    double score_loss = 0, language_loss = 0, norm = 0, terms = 0, scored = 0;  ///< sums over the epoch's updates so far
    nlohmann::json to_json() const {
        return {{"score_loss", score_loss}, {"language_loss", language_loss}, {"norm", norm}, {"terms", terms}, {"scored", scored}};
    }
    static EpochSoFar from_json(const nlohmann::json& json) {
        return {json.at("score_loss"), json.at("language_loss"), json.at("norm"), json.at("terms"), json.at("scored")};
    }
};

}  // namespace

int run_reward_train(const Context& c) {
    const auto product = c.run.judge(), work = c.run.judge_training(), states = work / "updates";
    const StageLock stage = begin_stage(c, work, product);
    if (stage.is_complete) {
        if (c.world->is_root()) remove_snapshots(states);
        return 0;
    }
    io::Manifest manifest = c.new_manifest("reward-train");
    StageMemory memory;
    const config::Config& config = c.config;
    const auto path = [&](const char* key) {
        const std::string& text = config.text(key);
        ATELIER_CHECK_USAGE(!text.empty(), "reward-train needs {}", key);
        return fs::path(text);
    };
    const fs::path start = path("reward_train.start");
    const auto read = [&](const std::string& what) {
        const std::vector<std::string>& files = config.list("reward_train." + what);
        ATELIER_CHECK_USAGE(!files.empty() && !files[0].empty(), "reward-train needs reward_train.{}", what);
        for (std::size_t i = 0; i < files.size(); ++i) manifest.inputs[fmt::format("{}/{}", what, i + 1)] = io::digest_file(files[i]);
        Labels found = judge::read_labels(files);
        show_sources(found, config.integer("sampling.output_resolution"));
        return found;
    };
    const Labels labels = read("labels"), heldout = read("heldout");
    return_holes();  // what HDF5 knew of each picture's dataset lay between other things until the file was closed
    LabelTemplates templates(path("judge.templates"));
    for (const judge::LabelledSample& s : labels) {
        const judge::Template& t = templates.at(s);
        manifest.inputs["judge/" + t.kind + "/" + t.dimension] = io::digest_file(t.path);
    }
    for (const judge::LabelledSample& s : heldout) templates.at(s);
    for (const auto& [name, digest] : judge_weight_digests(*c.world, start)) manifest.inputs["start/" + name] = digest;
    const nlohmann::json inputs = input_hashes(manifest);

    const TrainingRanks ranks(c);
    if (c.device() == Device::cuda) ops::backend().set_product_precision(c.product_precision());
    std::optional<judge::TrainedJudge> model(std::in_place, start, trained_parts(c), ranks.sharded(), c.device(), c.product_precision());
    const nn::LoraAdapter* adapter = model->adapter();
    const bool pairwise = config.text("reward_train.loss") == "pairwise";
    const auto sample_of = [&](std::size_t i) {
        return judge::make_training_sample(*model, templates.at(labels[i]), labels[i]);
    };
    std::optional<Trainer> trainer(std::in_place, TrainedModel{model->weights(), model->sharded_weights(), model->frozen()}, fs::path(),
                                   Trainer::Settings{{0.9, 0.999, 1e-8, config.number("reward_train.weight_decay")},
                                                     config.number("reward_train.max_grad_norm"), 0.0, {},
                                                     static_cast<int>(config.integer("compute.zero")), c.keeps_state_on_host()},
                                   ranks.all());
    const judge::LabelPass::Sizes sizes = training_sizes(*model, templates, labels);
    Workspace workspace("sample's sequence");
    workspace.reserve(hold_reward_train(memory.plan, c, *model, sizes, labels, heldout, c.world->size()));
    memory.say(c);
    judge::LabelPass pass = workspace.build(
        [&](Arena& arena) { return judge::LabelPass(model->vlm(), config.number("reward_train.language_weight"), sizes, arena); });

    const auto batch = static_cast<std::size_t>(config.integer("reward_train.batch"));
    const std::int64_t epochs = config.integer("reward_train.epochs");
    const std::size_t per_epoch = draw_items(c, labels, pairwise, 0).size(),
                      batches = (per_epoch + batch - 1) / batch;
    const std::int64_t total = epochs * static_cast<std::int64_t>(batches);
    const optim::LearningRate rate{config.number("reward_train.learning_rate"),
                                   optim::RateShape::cosine,
                                   config.integer("reward_train.warm_up"),
                                   std::max<std::int64_t>(1, total), 0.05};
    Snapshots snapshots(c, states, *trainer, config.integer("reward_train.publish_every"), inputs);
    EpochSoFar done;
    if (const auto cursor = snapshots.resume()) done = EpochSoFar::from_json(*cursor);
    Progress progress("reward-train", "updates", total, !c.world->is_root());
    progress.start_at(trainer->updates());
    std::vector<Item> items;
    std::int64_t drawn_epoch = -1;
    while (trainer->updates() < total) {
        if (stop_was_asked(*c.world)) {
            snapshots.settle(done.to_json());
            if (c.world->is_root())
                log_line(fmt::format("stopped by a signal after {} of {} updates", trainer->updates(), total));
            return static_cast<int>(ErrorKind::requeue);
        }
        const std::int64_t epoch = trainer->updates() / static_cast<std::int64_t>(batches),
                           b = trainer->updates() % static_cast<std::int64_t>(batches);
        if (epoch != drawn_epoch) items = draw_items(c, labels, pairwise, epoch);
        drawn_epoch = epoch;
        if (b == 0) done = {};
        const std::size_t begin = static_cast<std::size_t>(b) * batch,
                          end = std::min(items.size(), begin + batch);
        const auto learn = [&](const Item& item, double weight) {
            const auto& weights = model->weights();
            return pairwise ? pass.add_pair(weights, trainer->gradients(), sample_of(item.first), sample_of(item.second), weight)
                            : pass.add_sample(weights, trainer->gradients(), sample_of(item.first), weight);
        };
        trainer->zero_gradients();
        double sums[2] = {0, 0};
        std::size_t mine = 0;
        for (std::size_t i = begin; i < end; ++i) {
            if (!c.is_mine(i - begin)) continue;
            const judge::JudgeLoss loss = learn(items[i], 1.0 / static_cast<double>(end - begin));
            sums[0] += loss.score;
            sums[1] += loss.language;
            ++mine;
        }
        // Where passes are collective every rank makes as many as the first one.
        const auto world_size = static_cast<std::size_t>(c.world->size());
        if (trainer->is_collective() && mine < (end - begin + world_size - 1) / world_size) learn(items[begin], 0.0);
        done.norm += trainer->step(rate.at(trainer->updates() + 1));
        c.world->sum(std::span(sums));
        done.score_loss += sums[0];
        done.language_loss += sums[1];
        done.terms += static_cast<double>(end - begin);
        for (std::size_t i = begin; i < end; ++i) done.scored += labels[items[i].first].applies() ? 1 : 0;
        progress.update(trainer->updates());
        snapshots.after_update(done.to_json());
    }
    snapshots.settle(done.to_json());

    nlohmann::json metrics{{"stage", "reward-train"},
                           {"policy", "judge"},
                           {"iteration", 0},
                           {"loss_kind", config.text("reward_train.loss")},
                           {"samples", labels.size()},
                           {"updates", trainer->updates()}};
    if (done.terms > 0) {
        if (done.scored > 0) metrics["score_loss"] = done.score_loss / done.scored;
        metrics["language_loss"] = done.language_loss / done.terms;
        metrics["gradient_norm"] = done.norm / static_cast<double>(batches);
    }
    if (adapter != nullptr) metrics["trained_parameters"] = trainer->count();
    trainer.reset();
    workspace.give_back();
    std::string table;
    if (c.world->is_root()) io::remove_temporaries(c.run.root, product.filename().string());
    c.world->barrier();
    publish_together(
        *c.world, product,
        [&](const fs::path& temporary) {
            model->save(temporary, c.world->is_root());
            // In a folder of its own: transformers adds an adapter that it finds beside weights to them.
            if (adapter != nullptr && c.world->is_root()) {
                fs::create_directory(temporary / "adapter");
                nn::save_lora(adapter->copy_to(Device::cpu).store(), temporary / "adapter", nn::LoraLayout::peft);
            }
            model.reset();
            c.world->barrier();
            // What counts is what it says by itself, reasons of its own writing included.
            const auto [report, judgements] = judge_heldout(c, temporary, heldout);
            metrics["heldout"] = report["dimensions"];
            if (!c.world->is_root()) return;
            table = judge_table(report);
            io::publish_text(temporary / "report.json", report.dump(1) + "\n");
            io::publish_text(temporary / "table.txt", table);
            io::publish_text(temporary / "judgements.csv", judgements);
        },
        [&](const fs::path& temporary) {
            io::put_metrics(c.run.metrics(), metrics);  // before the judge: a judge always has its record
            name_outputs(temporary, manifest);
            manifest.facts = metrics;
            memory.finish(c, manifest);
            io::publish_manifest(temporary, manifest);
        });
    snapshots.remove();
    if (c.world->is_root()) std::cout << table << (product / "report.json").string() << '\n';
    c.world->barrier();
    return 0;
}

}  // namespace atelier::stage
