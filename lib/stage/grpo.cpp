#include "stage/grpo.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/progress.hpp"
#include "io/metrics.hpp"
#include "io/trajectory.hpp"
#include "optim/learning_rate.hpp"
#include "stage/group_summary.hpp"
#include "stage/picture_sizes.hpp"
#include "stage/retention.hpp"
#include "stage/run_model.hpp"
#include "stage/snapshots.hpp"
#include "stage/stage_memory.hpp"
#include "stage/timeline.hpp"
#include "stage/trainer.hpp"
#include "stage/truth_gap.hpp"

namespace atelier::stage {
namespace {

using Json = nlohmann::json;

rl::GroupTrajectory trajectory_of(io::TrajectorySamples& s) {
    rl::GroupTrajectory t;
    t.x = std::move(s.x);
    t.x_next = std::move(s.x_next);
    t.log_prob = std::move(s.log_prob);
    for (std::size_t i = 0; i < s.noise_key.size(); i += 2)
        t.noise_key.push_back({s.noise_key[i], s.noise_key[i + 1]});
    return t;
}

/// The base's weights beside the policy's, for KL terms: cut over the ranks where the policy's are.
struct Reference {
    Reference(const pipeline::Pipeline& model, const TrainingRanks& ranks, const std::filesystem::path& directory)
        : arena("base policy", 0) {
        const nn::ShardedWeights* cut = model.sharded_weights();
        const dit::Dit& dit = model.dit();
        arena = Arena::of("base policy", [&](Arena& taken) {
            if (cut != nullptr) {
                sharded = std::make_unique<nn::ShardedWeights>(cut->partition(), ranks.all(), Tensor(), taken, dit.device(), dit.precision());
                weights = nn::ParameterStore(dit.table(), *sharded);
            } else {
                frozen = std::make_unique<nn::FrozenWeights>(dit.table(), taken, dit.device(), dit.precision());
                weights = frozen->store();
            }
        });
        if (cut == nullptr) {
            model.read_frozen(directory, *frozen);
        } else {
            model.read_shard(directory, sharded->shard());
            sharded->refresh();
        }
    }
    Arena arena;
    std::unique_ptr<nn::ShardedWeights> sharded;
    std::unique_ptr<nn::FrozenWeights> frozen;
    nn::ParameterStore weights;
};

/// One policy's update from one rollout.
class Update {
  public:
    Update(const Context& c, const TrainingRanks& ranks, pipeline::Pipeline& model, const rl::SamplingSpec& spec,
           const std::filesystem::path& rollout, const std::vector<std::string>& shards,
           const std::vector<GroupSummary>& groups, const PromptIndex& prompts)
        : c_(c),
          model_(model),
          spec_(spec),
          rollout_(rollout),
          shards_(shards),
          groups_(groups),
          prompts_(prompts),
          objective_(objective_of(c.config)) {
        if (objective_.kl == rl::KlKind::none) return;
        // With its adapter off the policy is the base.
        if (model.adapter() == nullptr)
            reference_ = std::make_unique<Reference>(model, ranks, c.base_transformer());
        base_weights_ = reference_ ? reference_->weights : model.dit_weights().with_lora(nullptr);
    }

    /// Plans and takes the memory for this rank's groups in `parts` minibatches.
    void reserve(std::size_t parts, const Trainer& trainer, bool snapshots, StageMemory& memory) {
        std::vector<std::size_t> units;
        for (std::size_t part = 0; part < parts; ++part) {
            for (const std::size_t unit : my_units(part, parts)) units.push_back(unit);
            if (trainer.is_collective() && kept_of(part, parts) > 0) units.push_back(first_kept(part, parts));
        }
        const PromptSource prompts{units.size(), [&](std::size_t i) { return prompt_of(units[i]); }};
        const auto [training, base] = hold_grpo(
            memory.plan, memory.add_model(c_, model_, prompts, spec_.trains_both_branches(), 0), spec_, c_.keep(),
            {base_weights_.has_value(), reference_ ? reference_->arena.bytes() : Bytes(), trainer.planned(), snapshots});
        workspace_.reserve(training);
        base_workspace_.reserve(base);
    }
    /// After the last minibatch.
    void give_back() {
        workspace_.give_back();
        base_workspace_.give_back();
    }

    /// Adds the gradient of a minibatch's groups, mean over their samples and trained steps.
    /// Returns how many groups train, or nothing where this rank stopped for a signal. Where passes are collective, ranks whose turn it
    /// isn't in the last round run one of the groups with weight 0.
    std::optional<std::size_t> accumulate(std::size_t part, std::size_t parts, const Trainer& trainer, rl::ObjectiveStats& stats) {
        const std::size_t kept = kept_of(part, parts);
        const double terms = static_cast<double>(kept) * spec_.members *
                             static_cast<double>(spec_.trained_steps.size());
        const auto mine = my_units(part, parts);
        const auto ranks = static_cast<std::size_t>(c_.world->size());
        const std::size_t rounds = trainer.is_collective() ? (kept + ranks - 1) / ranks : mine.size();
        for (std::size_t round = 0; round < rounds; ++round) {
            if (stops_between_passes(*c_.world, trainer.is_collective())) return std::nullopt;
            if (round < mine.size()) stats.merge(train_group(mine[round], 1.0 / terms, trainer.gradients()));
            else train_group(first_kept(part, parts), 0.0, trainer.gradients());
        }
        return kept;
    }

  private:
    const Prompt& prompt_of(std::size_t unit) const {
        return prompts_.at(groups_[unit].task, groups_[unit].prompt, rollout_ / shards_[unit]);
    }
    std::size_t kept_of(std::size_t part, std::size_t parts) const {
        std::size_t kept = 0;
        for (std::size_t unit = part; unit < shards_.size(); unit += parts)
            kept += groups_[unit].dropped ? 0 : 1;
        return kept;
    }
    std::size_t first_kept(std::size_t part, std::size_t parts) const {
        std::size_t unit = part;
        while (groups_[unit].dropped) unit += parts;
        return unit;
    }
    /// Groups of a minibatch that train on this rank: kept ones are dealt out in turn.
    std::vector<std::size_t> my_units(std::size_t part, std::size_t parts) const {
        std::vector<std::size_t> mine;
        std::size_t turn = 0;
        for (std::size_t unit = part; unit < shards_.size(); unit += parts)
            if (!groups_[unit].dropped && c_.is_mine(turn++)) mine.push_back(unit);
        return mine;
    }
    rl::SamplingSpec spec_of(dit::Grid target) const { return on_grid(spec_, model_.schedule_config(), target); }
    rl::GroupPolicy build(const EncodedPair& pair, const rl::SamplingSpec& spec, const nn::ParameterStore& weights,
                          dit::Keep keep, Arena& arena) const {
        return rl::GroupPolicy(model_.dit(), weights, pair.conditional,
                               spec.trains_both_branches() ? &pair.unconditional : nullptr, spec, keep, arena);
    }
    rl::ObjectiveStats train_group(std::size_t unit, double weight,
                                   const nn::ParameterStore& gradients) {
        auto shard = io::read_trajectory(rollout_ / shards_[unit], c_.config.hash(),
                                         io::TrajectoryParts::training);
        const Prompt& prompt = prompts_.at(shard.prompts.task[0], shard.prompts.id[0],
                                           rollout_ / shards_[unit]);
        const EncodedPair pair = encode_pair(model_, c_, prompt, spec_.trains_both_branches());
        const rl::SamplingSpec spec = spec_of(groups_[unit].target);
        const auto trajectory = trajectory_of(shard.shapes[0]);
        std::vector<float> base_velocity;
        if (base_weights_)
            base_velocity = base_workspace_
                                .build([&](Arena& arena) {
                                    return build(pair, spec, *base_weights_, dit::Keep::nothing, arena);
                                })
                                .velocities(trajectory);
        return workspace_
            .build([&](Arena& arena) {
                return build(pair, spec, model_.dit_weights(), c_.keep(), arena);
            })
            .train(objective_, trajectory, groups_[unit].advantages, weight, gradients,
                   base_velocity);
    }

    const Context& c_;
    pipeline::Pipeline& model_;
    const rl::SamplingSpec& spec_;
    std::filesystem::path rollout_;
    const std::vector<std::string>& shards_;
    const std::vector<GroupSummary>& groups_;
    const PromptIndex& prompts_;
    rl::ObjectiveConfig objective_;
    std::unique_ptr<Reference> reference_;
    std::optional<nn::ParameterStore> base_weights_;  ///< for KL terms
    Workspace workspace_{"group"}, base_workspace_{"base policy's group"};
};

/// Sums over ranks of what the metrics are made from.
void sum_over_ranks(comm::Communicator& world, rl::ObjectiveStats& s) {
    double sums[] = {s.terms, s.loss, s.ratio, s.ratio_deviation, s.clipped, s.outside, s.kl};
    world.sum(std::span(sums));
    s.terms = sums[0], s.loss = sums[1], s.ratio = sums[2], s.ratio_deviation = sums[3],
    s.clipped = sums[4], s.outside = sums[5], s.kl = sums[6];
}

/// What a stage has behind it: kept with its snapshots.
struct TrainedSoFar {
    std::int64_t updates = 0;  ///< minibatches, with or without groups
    std::int64_t steps = 0;    ///< of the optimizer
    double norm_sum = 0;
    std::vector<double> losses, norms;  ///< of each step
    rl::ObjectiveStats stats;
    Json to_json() const {
        return {{"updates", updates}, {"steps", steps}, {"norm_sum", norm_sum}, {"losses", losses}, {"norms", norms},
                {"stats", {stats.terms, stats.loss, stats.ratio, stats.ratio_deviation, stats.clipped, stats.outside, stats.kl}}};
    }
    static TrainedSoFar from_json(const Json& json) {
        TrainedSoFar d{json.at("updates"), json.at("steps"), json.at("norm_sum"), json.at("losses"), json.at("norms"), {}};
        const std::vector<double> sums = json.at("stats");
        rl::ObjectiveStats& s = d.stats;
        s.terms = sums.at(0), s.loss = sums.at(1), s.ratio = sums.at(2), s.ratio_deviation = sums.at(3), s.clipped = sums.at(4),
        s.outside = sums.at(5), s.kl = sums.at(6);
        return d;
    }
};

}  // namespace

rl::ObjectiveConfig objective_of(const config::Config& c) {
    return {c.number("grpo.clip"), c.flag("grpo.ratio_norm"), rl::parse_kl_kind(c.text("grpo.kl")), c.number("grpo.kl_beta")};
}

int run_grpo(const Context& c) {
    const auto rollout = c.run.rollout(c.policy, c.iteration),
               directory = c.run.policy(c.policy, c.iteration);
    // The lock stands beside the policy, which is published as a whole.
    const StageLock stage = begin_stage(c, c.run.iteration(c.policy, c.iteration), directory);
    const auto updates = c.run.iteration(c.policy, c.iteration) / "updates";
    const auto retain_all = [&] {
        retain(c, rollout);
        retain_states(c, c.iteration, [&](std::int64_t i) { return c.run.policy(c.policy, i); });
    };
    if (stage.is_complete) {
        if (c.world->is_root()) {
            remove_snapshots(updates);
            retain_all();
        }
        return 0;
    }
    require_same_model(c);
    require_complete(*c.world, rollout, "run atelier-rollout first");
    require_trajectories(rollout, "atelier-rollout");
    io::Manifest manifest = c.new_manifest("grpo");
    StageMemory memory;
    std::vector<std::string> shards;
    for (const auto& [name, digest] : io::read_manifest(rollout).outputs)
        if (name.starts_with("shard-")) shards.push_back(name);

    const auto policy = c.starting_policy(reads_weights_and_state);
    const TrainingRanks ranks(c);
    pipeline::Pipeline model(c.model(), policy, c.training_placement(ranks.sharded()));
    prepare_adapter(c, model);
    const rl::SamplingSpec spec = c.sampling(model);
    const std::string policy_hash = weights_hash(*c.world, policy);
    const PromptIndex prompts(c, c.tasks());
    const auto groups = gather_groups(c, rollout, shards, spec, prompts, policy_hash);
    Trainer trainer({model.dit_weights(), model.sharded_weights(), {}}, policy,
                    {{c.config.number("grpo.beta1"), c.config.number("grpo.beta2"), 1e-8,
                      c.config.number("grpo.weight_decay")},
                     c.config.number("grpo.max_grad_norm"),
                     c.config.number("grpo.ema"),
                     c.storage(model.dit().table()),
                     static_cast<int>(c.config.integer("compute.zero")),
                     c.keeps_state_on_host()},
                    ranks.all());
    const optim::LearningRate rate{c.learning_rate(), optim::RateShape::constant,
                                   c.config.integer("grpo.warm_up"), 0, 0.0};
    Update update(c, ranks, model, spec, rollout, shards, groups, prompts);

    Json metrics = describe_rewards(groups);
    metrics.update({{"stage", "grpo"}, {"policy", c.policy}, {"iteration", c.iteration}});
    if (Json gap = describe_columns(groups, &GroupSummary::gap); !gap.empty()) {
        metrics["truth"] = describe_columns(groups, &GroupSummary::truth);
        metrics["gap"] = std::move(gap);
        watch_gap(c, metrics);
    }
    const auto parts = std::min<std::size_t>(
        static_cast<std::size_t>(c.config.integer("grpo.minibatches")), shards.size());
    const auto epochs = c.config.integer("grpo.epochs");
    manifest.inputs["rollout/manifest.json"] = io::digest_file(rollout / io::manifest_name);
    Snapshots snapshots(c, updates, trainer, c.config.integer("checkpoint.every"),
                        {{"rollout", manifest.inputs["rollout/manifest.json"].hash}, {"policy", policy_hash}});
    update.reserve(parts, trainer, snapshots.is_on(), memory);
    memory.say(c);
    Progress progress(fmt::format("grpo {} {}", c.policy, c.iteration), "updates",
                      epochs * static_cast<std::int64_t>(parts), !c.world->is_root());
    Timeline timeline;
    TrainedSoFar done;
    if (const auto cursor = snapshots.resume()) done = TrainedSoFar::from_json(*cursor);
    progress.start_at(done.updates);
    while (done.updates < epochs * static_cast<std::int64_t>(parts)) {
        trainer.zero_gradients();
        rl::ObjectiveStats stats;
        const std::optional<std::size_t> kept = timeline.measure("gradients", done.updates, [&] {
            return update.accumulate(static_cast<std::size_t>(done.updates) % parts, parts, trainer, stats);
        });
        if (c.world->any(!kept)) {  // nothing of a policy is published before all of it is
            snapshots.settle(done.to_json());
            if (c.world->is_root()) log_line("stopped by a signal before the update was complete");
            return static_cast<int>(ErrorKind::requeue);
        }
        sum_over_ranks(*c.world, stats);
        done.stats.merge(stats);
        ++done.updates;
        if (*kept > 0) {
            done.norms.push_back(timeline.measure("step", done.updates, [&] { return trainer.step(rate.at(trainer.updates() + 1)); }));
            done.norm_sum += done.norms.back();
            done.losses.push_back(stats.mean(stats.loss));
            ++done.steps;
            snapshots.after_update(done.to_json());
        }
        progress.update(done.updates);
    }
    update.give_back();
    metrics["trained_parameters"] = trainer.count();
    const rl::ObjectiveStats& all = done.stats;
    metrics["updates"] = done.steps;
    metrics["updates_without_groups"] = done.updates - done.steps;
    metrics["gradient_norm"] = done.steps > 0 ? done.norm_sum / static_cast<double>(done.steps) : 0.0;
    metrics["ratio_mean"] = all.terms > 0 ? all.mean(all.ratio) : 1.0;
    metrics["ratio_deviation"] = all.mean(all.ratio_deviation);
    metrics["clip_share"] = all.mean(all.clipped);
    metrics["kl"] = all.mean(all.kl);
    metrics["loss"] = all.mean(all.loss);
    metrics["losses"] = done.losses;
    metrics["gradient_norms"] = done.norms;
    metrics["learning_rate"] = c.learning_rate();
    if (c.world->is_root()) io::put_metrics(c.run.metrics(), metrics);  // before the policy: a policy always has its record
    publish_together(
        *c.world, directory,
        [&](const std::filesystem::path& temporary) {
            trainer.save(policy / "config.json", temporary, c, manifest);
            timeline.publish(*c.world, temporary);
        },
        [&](const std::filesystem::path& temporary) {
            manifest.facts = metrics;
            memory.finish(c, manifest);
            io::publish_manifest(temporary, manifest);
        });
    snapshots.remove();
    if (c.world->is_root()) {
        std::string reward = "no sample has a reward";
        if (const Json& all_rewards = metrics["reward"]; all_rewards.contains("total"))
            reward = fmt::format("reward {:.3f} [{:.3f}, {:.3f}]", all_rewards["total"]["mean"].get<double>(), all_rewards["total"]["low"].get<double>(),
                                 all_rewards["total"]["high"].get<double>());
        log_line(fmt::format("grpo {} {}: {}, {} of {} groups dropped, gradient norm {:.3g}, clip share {:.3f}", c.policy, c.iteration, reward,
                             metrics["groups_dropped"].get<int>(), metrics["groups"].get<int>(), metrics["gradient_norm"].get<double>(),
                             metrics["clip_share"].get<double>()));
        retain_all();
    }
    c.world->barrier();
    return 0;
}

}  // namespace atelier::stage
