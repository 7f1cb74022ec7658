#include "stage/distill.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "core/progress.hpp"
#include "distill/student_states.hpp"
#include "io/metrics.hpp"
#include "io/trajectory.hpp"
#include "optim/learning_rate.hpp"
#include "stage/group_rollout.hpp"
#include "stage/picture_sizes.hpp"
#include "stage/retention.hpp"
#include "stage/run_model.hpp"
#include "stage/snapshots.hpp"
#include "stage/stage_memory.hpp"
#include "stage/student.hpp"
#include "stage/timeline.hpp"
#include "stage/trainer.hpp"

namespace atelier::stage {
namespace {

struct Shard {
    std::string task;
    std::filesystem::path path;
};

/// Shards of the round's updates that this rank trains on, of one batch.
std::vector<std::size_t> my_batch(const Context& c, const std::vector<std::size_t>& order,
                                  std::size_t begin, std::size_t end) {
    std::vector<std::size_t> mine;
    for (std::size_t i = begin; i < end; ++i)
        if (c.is_mine(i - begin)) mine.push_back(order[i]);
    return mine;
}

/// What a round has behind it: kept with its snapshots.
struct DistilledSoFar {
    std::int64_t updates = 0;
    double norm_sum = 0, first_loss = 0;
    std::vector<double> losses, norms;                      ///< of each update
    std::map<std::string, std::pair<double, double>> loss;  ///< of this epoch, by task: sum and terms
    double mean_loss() const {
        double sum = 0, terms = 0;
        for (const auto& [task, pair] : loss) sum += pair.first, terms += pair.second;
        return terms > 0 ? sum / terms : 0;
    }
    nlohmann::json to_json() const {
        return {{"updates", updates}, {"norm_sum", norm_sum}, {"first_loss", first_loss}, {"losses", losses}, {"norms", norms}, {"loss", loss}};
    }
    static DistilledSoFar from_json(const nlohmann::json& json) {
        return {json.at("updates"), json.at("norm_sum"), json.at("first_loss"), json.at("losses"), json.at("norms"), json.at("loss")};
    }
};

}  // namespace

int run_distill(const Context& c) {
    const std::int64_t round = c.iteration;
    ATELIER_CHECK_USAGE(round <= c.config.integer("distill.rounds"), "round {} of {}", round,
                        c.config.integer("distill.rounds"));
    const auto directory = c.run.student(round);
    const StageLock stage = begin_stage(c, c.run.round(round), directory);
    const auto retain_all = [&] {
        for (const std::string& task : c.config.tasks()) retain(c, c.run.dump(round, task));
        retain_states(c, round, [&](std::int64_t r) { return c.run.student(r); });
    };
    const auto updates = c.run.round(round) / "updates";
    if (stage.is_complete) {
        if (c.world->is_root()) {
            remove_snapshots(updates);
            retain_all();
        }
        return 0;
    }
    require_same_model(c);
    io::Manifest manifest = c.new_manifest("distill");
    std::vector<Shard> shards;
    StageMemory memory;
    for (const std::string& task : c.config.tasks()) {
        const auto dump = c.run.dump(round, task);
        require_complete(*c.world, dump, fmt::format("run atelier-teacher-dump for task {} and round {} first", task, round));
        require_trajectories(dump, "atelier-teacher-dump");
        manifest.inputs["teacher-" + task + "/" + io::manifest_name] =
            io::digest_file(dump / io::manifest_name);
        for (const auto& [name, digest] : io::read_manifest(dump).outputs)
            if (name.starts_with("shard-")) shards.push_back({task, dump / name});
    }
    const StudentStart start = student_start(c, round, reads_weights_and_state);
    nlohmann::json trained_on = input_hashes(manifest);
    trained_on["student's start"] = start.hash;
    const TrainingRanks training_ranks(c);
    pipeline::Pipeline model(c.model(), start.source, c.training_placement(training_ranks.sharded()));
    load_start(start, model);
    prepare_adapter(c, model);
    const distill::StudentSpec spec = student_spec(c, model.schedule_config());
    const auto spec_of = [&](const io::TrajectorySamples& s) {
        return on_grid(spec, model.schedule_config(), {s.height, s.width});
    };
    const distill::LossKind kind = distill::parse_loss_kind(c.config.text("distill.loss"));
    const int loss_steps = spec.loss_steps(kind);
    Trainer trainer({model.dit_weights(), model.sharded_weights(), {}}, start.source,
                    {{c.config.number("distill.beta1"), c.config.number("distill.beta2"), 1e-8, 0.0},
                     c.config.number("distill.max_grad_norm"),
                     0.0,
                     c.storage(model.dit().table()),
                     static_cast<int>(c.config.integer("compute.zero")),
                     c.keeps_state_on_host()},
                    training_ranks.all());

    const PromptIndex prompts(c, c.config.tasks());
    const auto build = [&](const EncodedPair& pair, const distill::StudentSpec& own, Arena& arena) {
        return distill::StudentStates(model.dit(), model.dit_weights(), pair.conditional, nullptr,
                                      own, c.keep(), arena);
    };
    Snapshots snapshots(c, updates, trainer, c.config.integer("checkpoint.every"), trained_on);
    Workspace workspace("trajectories");
    const auto train_shard = [&](const Shard& shard, double weight) {
        const auto data =
            io::read_trajectory(shard.path, c.config.hash(), io::TrajectoryParts::training);
        const io::TrajectorySamples& s = data.shapes.at(0);
        ATELIER_CHECK_INPUT(data.header.model_hash == start.hash, "{} was drawn by another student than the round starts from: weights {} expected, found {}",
                            shard.path.string(), start.hash, data.header.model_hash);
        ATELIER_CHECK_INPUT(s.samples() == spec.members && !s.teacher_velocity.empty() &&
                                s.trained == spec.schedule.steps(),
                            "{} does not hold {} whole trajectories with a teacher's velocities",
                            shard.path.string(), spec.members);
        const Prompt& prompt = prompts.at(shard.task, data.prompts.id.at(0), shard.path);
        require_same_prompt(c, prompt, data.prompts, shard.path);
        const EncodedPair pair = encode_pair(model, c, prompt, false);
        return workspace.build([&](Arena& arena) { return build(pair, spec_of(s), arena); })
            .train(kind, s.x, s.teacher_velocity, weight, trainer.gradients());
    };

    const auto order_of = [&](std::int64_t epoch) {
        return draw_order(c.seed(), static_cast<std::uint64_t>(round), static_cast<std::uint64_t>(epoch), shards.size());
    };
    const auto batch = static_cast<std::size_t>(c.config.integer("distill.batch"));
    const auto epochs = c.config.integer("distill.epochs");
    const std::size_t batches = (shards.size() + batch - 1) / batch;
    const auto ranks = static_cast<std::size_t>(c.world->size());
    const optim::LearningRate rate{
        c.config.number("distill.learning_rate"),
        optim::parse_rate_shape(c.config.text("distill.rate_shape")), 0,
        c.config.integer("distill.rounds") * epochs * static_cast<std::int64_t>(batches), 0.0};
    {
        std::set<std::size_t> trained;  // by this rank
        for (std::int64_t epoch = 0; epoch < epochs; ++epoch) {
            const auto order = order_of(epoch);
            for (std::size_t begin = 0; begin < shards.size(); begin += batch) {
                const auto units = my_batch(c, order, begin, std::min(shards.size(), begin + batch));
                trained.insert(units.begin(), units.end());
                if (trainer.is_collective()) trained.insert(order[begin]);
            }
        }
        std::vector<const Prompt*> mine;
        for (const std::size_t i : trained) {
            const auto head = io::read_trajectory(shards[i].path, c.config.hash(), io::TrajectoryParts::scores);
            mine.push_back(&prompts.at(shards[i].task, head.prompts.id.at(0), shards[i].path));
        }
        workspace.reserve(hold_distill(memory.plan, memory.add_model(c, model, {mine.size(), [&](std::size_t i) { return *mine[i]; }}, false, 0), spec, c.keep(),
                                       trainer.planned(), snapshots.is_on()));
        memory.say(c);
    }
    Progress progress(fmt::format("distill {}", round), "updates",
                      epochs * static_cast<std::int64_t>(batches), !c.world->is_root());
    DistilledSoFar done;
    if (const auto cursor = snapshots.resume()) done = DistilledSoFar::from_json(*cursor);
    progress.start_at(done.updates);
    std::vector<std::size_t> order;
    Timeline timeline;
    while (done.updates < epochs * static_cast<std::int64_t>(batches)) {
        const std::int64_t epoch = done.updates / static_cast<std::int64_t>(batches);
        const auto b = static_cast<std::size_t>(done.updates) % batches;
        if (order.empty() || b == 0) order = order_of(epoch);
        const std::size_t begin = b * batch, end = std::min(shards.size(), begin + batch);
        const double weight =
            1.0 / (static_cast<double>(end - begin) * spec.members * loss_steps);
        trainer.zero_gradients();
        std::map<std::string, std::pair<double, double>> sums;
        for (const std::string& task : c.config.tasks()) sums[task];  // the same keys on every rank
        const auto mine = my_batch(c, order, begin, end);
        // Where passes are collective every rank makes as many as the first one.
        const std::size_t rounds = trainer.is_collective() ? (end - begin + ranks - 1) / ranks : mine.size();
        const bool is_whole = timeline.measure("gradients", done.updates, [&] {
            for (std::size_t i = 0; i < rounds; ++i) {
                if (stops_between_passes(*c.world, trainer.is_collective())) return false;
                if (i >= mine.size()) {
                    train_shard(shards[order[begin]], 0.0);
                    continue;
                }
                const Shard& shard = shards[mine[i]];
                const auto stats = train_shard(shard, weight);
                sums[shard.task].first += stats.loss;
                sums[shard.task].second += stats.terms;
            }
            return true;
        });
        if (c.world->any(!is_whole)) {
            snapshots.settle(done.to_json());
            if (c.world->is_root()) log_line("stopped by a signal before the round was complete");
            return static_cast<int>(ErrorKind::requeue);
        }
        done.norms.push_back(timeline.measure("step", done.updates, [&] { return trainer.step(rate.at(trainer.updates() + 1)); }));
        done.norm_sum += done.norms.back();
        if (b == 0) done.loss = {};
        double all[2] = {0, 0};
        for (auto& [task, sum] : sums) {
            double pair[2] = {sum.first, sum.second};
            c.world->sum(std::span(pair));
            done.loss[task].first += pair[0];
            done.loss[task].second += pair[1];
            all[0] += pair[0], all[1] += pair[1];
        }
        done.losses.push_back(all[0] / all[1]);
        ++done.updates;
        if (epoch == 0 && b + 1 == batches) done.first_loss = done.mean_loss();
        snapshots.after_update(done.to_json());
        progress.update(done.updates);
    }
    const double last_loss = done.mean_loss();
    workspace.give_back();
    nlohmann::json metrics{
        {"stage", "distill"},
        {"policy", "student"},
        {"iteration", round},
        {"shards", shards.size()},
        {"loss_first_epoch", done.first_loss},
        {"loss_last_epoch", last_loss},
        {"loss_kind", distill::name_of(kind)},
        {"gradient_norm",
         done.norm_sum / static_cast<double>(epochs * static_cast<std::int64_t>(batches))},
        {"losses", done.losses},
        {"gradient_norms", done.norms},
        {"trained_parameters", trainer.count()},
        {"updates", trainer.updates()},
        {"learning_rate", rate.at(trainer.updates())}};
    for (const auto& [task, sum] : done.loss)
        metrics["loss"][task] = sum.second > 0 ? sum.first / sum.second : 0.0;
    if (c.world->is_root()) io::put_metrics(c.run.metrics(), metrics);  // before the student: a student always has its record
    publish_together(
        *c.world, directory,
        [&](const std::filesystem::path& temporary) {
            trainer.save(c.base_transformer() / "config.json", temporary, c, manifest);
            timeline.publish(*c.world, temporary);
        },
        [&](const std::filesystem::path& temporary) {
            manifest.facts = metrics;
            memory.finish(c, manifest);
            io::publish_manifest(temporary, manifest);
        });
    snapshots.remove();
    if (c.world->is_root()) {
        log_line(fmt::format(
            "distill {}: loss {:.5f} over {} trajectories' prompts, gradient norm {:.3g}", round,
            last_loss, shards.size(), metrics["gradient_norm"].get<double>()));
        retain_all();
    }
    c.world->barrier();
    return 0;
}

}  // namespace atelier::stage
