#include "stage/reward_train.hpp"

#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>

#include "core/progress.hpp"
#include "io/metrics.hpp"
#include "optim/learning_rate.hpp"
#include "stage/judge_report.hpp"
#include "stage/reward_train_memory.hpp"
#include "stage/stage_memory.hpp"

namespace atelier::stage {
namespace {

namespace fs = std::filesystem;
constexpr const char* state_name = "judge_training.h5";

using Labels = std::vector<judge::LabelledSample>;

/// A sample, or a preference: the first is better.
struct Item {
    std::size_t first = 0, second = 0;
};

std::vector<std::size_t> draw_order(const Context& c, std::size_t count, std::int64_t epoch) {
    std::vector<std::size_t> order(count);
    for (std::size_t i = 0; i < count; ++i) order[i] = i;
    Random random(random_key(c.seed(), RandomUse::data_order, task_number("reward-train"),
                             static_cast<std::uint64_t>(epoch)));
    for (std::size_t i = count; i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
    return order;
}

/// What an epoch goes through: every sample once; pairwise, each that applies with a partner of its dimension
/// whose label differs, of the same prompt where there is one. Depends on (seed, epoch) alone.
std::vector<Item> draw_items(const Context& c, const Labels& labels, bool pairwise,
                             std::int64_t epoch) {
    std::vector<Item> items;
    Random random(random_key(c.seed(), RandomUse::data_order, task_number("reward-train pairs"),
                             static_cast<std::uint64_t>(epoch)));
    for (const std::size_t i : draw_order(c, labels.size(), epoch)) {
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

}  // namespace

int run_reward_train(const Context& c) {
    const auto product = c.run.judge(), work = c.run.judge_training(), checkpoint = work / "state";
    const StageLock stage = begin_stage(c, work, product);
    if (stage.is_complete) return 0;
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
        return judge::read_labels(files);
    };
    const Labels labels = read("labels"), heldout = read("heldout");
    return_holes();  // what HDF5 knew of each picture's dataset lay between other things until the file was closed
    LabelTemplates templates(path("judge.templates"));
    for (const judge::LabelledSample& s : labels) {
        const judge::Template& t = templates.at(s);
        manifest.inputs["judge/" + t.kind + "/" + t.dimension] = io::digest_file(t.path);
    }
    for (const judge::LabelledSample& s : heldout) templates.at(s);

    const bool resumes = fs::exists(checkpoint / io::manifest_name);
    if (resumes) {
        require_complete(*c.world, checkpoint, "remove it to train from the start");
        const io::Manifest before = io::read_manifest(checkpoint);
        ATELIER_CHECK_INPUT(before.config_hash == manifest.config_hash &&
                                before.inputs == manifest.inputs,
                            "{} was made from another configuration, other labels or templates: "
                            "remove it to train from the start",
                            checkpoint.string());
    }
    const bool adapts = config.integer("reward_train.lora_rank") > 0;
    const judge::JudgeModel model(resumes && !adapts ? checkpoint : start);
    const bool pairwise = config.text("reward_train.loss") == "pairwise";
    const auto sample_of = [&](std::size_t i) {
        return judge::make_training_sample(model, templates.at(labels[i]), labels[i]);
    };
    const judge::JudgeTrainer::Sizes sizes = training_sizes(model, templates, labels);
    judge::JudgeTrainer trainer(model, judge_trainer_config(c), sizes);
    if (resumes) trainer.load_state(checkpoint / state_name, checkpoint);
    hold_reward_train(memory.plan, c, model, sizes, labels, heldout, c.world->size());
    memory.say(c);

    // Losses of the epoch's updates so far.
    double score_loss = 0, language_loss = 0, norm = 0, terms = 0, scored = 0;
    if (resumes) {
        const nlohmann::json facts = io::read_manifest(checkpoint).facts;
        score_loss = facts.at("score_loss");
        language_loss = facts.at("language_loss");
        norm = facts.at("gradient_norm");
        terms = facts.at("terms");
        scored = facts.at("scored");
    }
    const auto publish_state = [&] {
        if (c.world->is_root()) {
            io::publish_directory(checkpoint, [&](const fs::path& temporary) {
                if (adapts)
                    nn::save_lora(*trainer.adapter(), temporary, nn::LoraLayout::peft);
                else
                    judge::save_judge(model, start, temporary);
                trainer.save_state(temporary / state_name);
                io::Manifest m = manifest;
                name_outputs(temporary, m);
                m.facts = {{"update", trainer.updates()},
                           {"score_loss", score_loss},
                           {"language_loss", language_loss},
                           {"gradient_norm", norm},
                           {"terms", terms},
                           {"scored", scored}};
                io::publish_manifest(temporary, std::move(m));
            });
        }
        c.world->barrier();
    };

    const auto batch = static_cast<std::size_t>(config.integer("reward_train.batch"));
    const std::int64_t epochs = config.integer("reward_train.epochs"),
                       every = config.integer("reward_train.publish_every");
    const std::size_t per_epoch = draw_items(c, labels, pairwise, 0).size(),
                      batches = (per_epoch + batch - 1) / batch;
    const std::int64_t total = epochs * static_cast<std::int64_t>(batches);
    const optim::LearningRate rate{config.number("reward_train.learning_rate"),
                                   optim::RateShape::cosine,
                                   config.integer("reward_train.warm_up"),
                                   std::max<std::int64_t>(1, total), 0.05};
    Progress progress("reward-train", "updates", total, !c.world->is_root());
    progress.start_at(trainer.updates());
    std::vector<Item> items;
    std::int64_t drawn_epoch = -1;
    while (trainer.updates() < total) {
        if (stop_was_asked(*c.world)) {
            publish_state();
            if (c.world->is_root())
                log_line(fmt::format("stopped by a signal; {} of {} updates are published",
                                     trainer.updates(), total));
            return static_cast<int>(ErrorKind::requeue);
        }
        const std::int64_t epoch = trainer.updates() / static_cast<std::int64_t>(batches),
                           b = trainer.updates() % static_cast<std::int64_t>(batches);
        if (epoch != drawn_epoch) items = draw_items(c, labels, pairwise, epoch);
        drawn_epoch = epoch;
        if (b == 0) score_loss = language_loss = norm = terms = scored = 0;
        const std::size_t begin = static_cast<std::size_t>(b) * batch,
                          end = std::min(items.size(), begin + batch);
        const double weight = 1.0 / static_cast<double>(end - begin);
        trainer.zero_gradients();
        double sums[2] = {0, 0};
        for (std::size_t i = begin; i < end; ++i) {
            if (!c.is_mine(i - begin)) continue;
            const judge::JudgeLoss loss =
                pairwise ? trainer.add_pair(sample_of(items[i].first), sample_of(items[i].second),
                                            weight)
                         : trainer.add_sample(sample_of(items[i].first), weight);
            sums[0] += loss.score;
            sums[1] += loss.language;
        }
        norm += trainer.step(rate.at(trainer.updates() + 1),
                             [&](std::span<float> g) { c.world->sum(g); });
        c.world->sum(std::span(sums));
        score_loss += sums[0];
        language_loss += sums[1];
        terms += static_cast<double>(end - begin);
        for (std::size_t i = begin; i < end; ++i) scored += labels[items[i].first].applies() ? 1 : 0;
        progress.update(trainer.updates());
        if (trainer.updates() % every == 0 && trainer.updates() < total) publish_state();
    }
    publish_state();

    // What counts is what it says by itself, reasons of its own writing included.
    const auto [report, judgements] = judge_heldout(c, adapts ? start : checkpoint, adapts ? checkpoint : fs::path(), heldout);
    trainer.merge();
    nlohmann::json metrics{{"stage", "reward-train"},
                           {"policy", "judge"},
                           {"iteration", 0},
                           {"loss_kind", config.text("reward_train.loss")},
                           {"samples", labels.size()},
                           {"updates", trainer.updates()}};
    if (terms > 0) {
        if (scored > 0) metrics["score_loss"] = score_loss / scored;
        metrics["language_loss"] = language_loss / terms;
        metrics["gradient_norm"] = norm / static_cast<double>(batches);
    }
    if (adapts) metrics["trained_parameters"] = trainer.adapter()->table().table().count();
    metrics["heldout"] = report["dimensions"];
    if (c.world->is_root()) {
        io::put_metrics(c.run.metrics(), metrics);  // before the judge: a judge always has its record
        io::remove_temporaries(c.run.root, product.filename().string());
        const std::string table = judge_table(report);
        io::publish_directory(product, [&, &report = report, &judgements = judgements](const fs::path& temporary) {
            judge::save_judge(model, start, temporary);
            // In a folder of its own: transformers adds an adapter that it finds beside weights to them.
            if (adapts) {
                fs::create_directory(temporary / "adapter");
                nn::save_lora(*trainer.adapter(), temporary / "adapter", nn::LoraLayout::peft);
            }
            io::publish_text(temporary / "report.json", report.dump(1) + "\n");
            io::publish_text(temporary / "table.txt", table);
            io::publish_text(temporary / "judgements.csv", judgements);
            name_outputs(temporary, manifest);
            manifest.facts = metrics;
            memory.finish(c, manifest);
            io::publish_manifest(temporary, manifest);
        });
        std::cout << table << (product / "report.json").string() << '\n';
    }
    c.world->barrier();
    return 0;
}

}  // namespace atelier::stage
