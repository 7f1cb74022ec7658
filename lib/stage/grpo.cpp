#include "stage/grpo.hpp"

#include <cmath>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "io/hdf5.hpp"
#include "io/trajectory.hpp"
#include "optim/adamw.hpp"
#include "optim/gradient_norm.hpp"

namespace atelier::stage {
namespace {

constexpr const char* training_name = "training.h5";

/// AdamW's memory of one policy, in the flat layout of the parameter table.
struct OptimizerState {
    std::int64_t update = 0;
    std::vector<float> m, v;
};

OptimizerState load_state(const std::filesystem::path& policy, std::int64_t size) {
    OptimizerState s;
    s.m.resize(static_cast<std::size_t>(size));
    s.v.resize(static_cast<std::size_t>(size));
    if (!std::filesystem::exists(policy / training_name)) return s;  // the base: nothing learnt yet
    const auto file = io::hdf5::File::open(policy / training_name);
    s.update = file.integer_attribute("/", "update");
    s.m = file.read<float>("/m", {size});
    s.v = file.read<float>("/v", {size});
    return s;
}

void save_state(const std::filesystem::path& directory, const OptimizerState& s, const Context& c) {
    auto file = io::hdf5::File::create(directory / training_name);
    file.set_attribute("/", "schema", std::string("atelier.training"));
    file.set_attribute("/", "update", s.update);
    file.set_attribute("/", "iteration", c.iteration);
    file.set_attribute("/", "config_hash", c.config.hash());
    file.write("/m", Tensor::of(s.m.data(), {static_cast<std::int64_t>(s.m.size())}));
    file.write("/v", Tensor::of(s.v.data(), {static_cast<std::int64_t>(s.v.size())}));
    file.close();
}

std::vector<optim::ParameterRange> decay_ranges(const nn::ParameterTable& table) {
    std::vector<optim::ParameterRange> ranges;
    for (int i = 0; i < table.size(); ++i) {
        const std::int64_t end = i + 1 < table.size() ? table.offset(i + 1) : table.flat_size();
        ranges.push_back({table.offset(i), end, table.spec(i).decay});
    }
    return ranges;
}

rl::GroupTrajectory trajectory_of(const io::TrajectorySamples& s) {
    rl::GroupTrajectory t;
    t.x = s.x;
    t.x_next = s.x_next;
    t.log_prob = s.log_prob;
    t.latents = s.latents;
    for (std::size_t i = 0; i < s.noise_key.size(); i += 2) t.noise_key.push_back({s.noise_key[i], s.noise_key[i + 1]});
    return t;
}

struct Group {
    io::TrajectorySamples samples;
    EncodedPair prompt;
    bool dropped() const { return samples.status[0] == static_cast<std::uint8_t>(io::SampleStatus::group_dropped); }
};

std::vector<Group> load_groups(const Context& c, pipeline::Pipeline& model, const rl::SamplingSpec& spec,
                               const std::vector<std::string>& shards) {
    const auto directory = c.run.rollout(c.task, c.iteration);
    const auto prompts = read_prompts(c.config.text("task." + c.task + ".train"));
    std::vector<Group> groups;
    for (std::size_t unit = 0; unit < shards.size(); ++unit) {
        if (!c.is_mine(unit)) continue;
        auto shard = io::read_trajectory(directory / shards[unit], c.config.hash());
        ATELIER_CHECK_INPUT(shard.shapes.size() == 1 && shard.prompts.id.size() == 1 && shard.shapes[0].samples() == spec.members,
                            "{} does not hold one group of {}", (directory / shards[unit]).string(), spec.members);
        const auto prompt = std::find_if(prompts.begin(), prompts.end(), [&](const Prompt& p) { return p.id == shard.prompts.id[0]; });
        ATELIER_CHECK_INPUT(prompt != prompts.end(), "{}: prompt {} is not in the prompt file", shards[unit], shard.prompts.id[0]);
        groups.push_back({std::move(shard.shapes[0]), encode_pair(model, c, *prompt, spec)});
    }
    return groups;
}

/// Sums that every rank adds to: means over all samples are made from them.
struct Totals {
    std::map<std::string, std::pair<double, double>> reward;  ///< sum, count
    double advantage_terms = 0, groups = 0, dropped = 0;
};

nlohmann::json reward_means(comm::Communicator& world, const std::vector<Group>& groups, double& all, double& dropped) {
    std::map<std::string, std::pair<double, double>> sums;
    double counts[2] = {static_cast<double>(groups.size()), 0};
    for (const Group& g : groups) {
        counts[1] += g.dropped();
        for (const auto& [name, column] : g.samples.reward)
            for (std::size_t i = 0; i < column.score.size(); ++i)
                if (column.present[i] != 0) sums[name].first += column.score[i], ++sums[name].second;
    }
    world.sum(std::span(counts));
    all = counts[0];
    dropped = counts[1];
    nlohmann::json means = nlohmann::json::object();
    // A rank without groups has no names: all ranks ask for all dimensions there are.
    for (const char* name : {"aesthetics", "alignment", "identity", "instruction", "portrait"}) {
        double pair[2] = {sums[name].first, sums[name].second};
        world.sum(std::span(pair));
        if (pair[1] > 0) means[name] = pair[0] / pair[1];
    }
    return means;
}

}  // namespace

int run_grpo(const Context& c) {
    const auto rollout = c.run.rollout(c.task, c.iteration), directory = c.run.policy(c.task, c.iteration);
    bool complete = false;
    // The lock stands beside the policy, which is published as a whole.
    const auto lock = begin_stage(c, c.run.iteration(c.task, c.iteration), complete);
    std::byte done{0};
    if (c.world->is_root()) done = std::byte{std::filesystem::exists(directory) && io::is_complete(directory)};
    c.world->broadcast(std::span(&done, 1), 0);
    if (done != std::byte{0}) {
        if (c.world->is_root()) std::cerr << directory.string() << " is complete already\n";
        return 0;
    }
    ATELIER_CHECK_INPUT(io::is_complete(rollout), "{} is not complete: run atelier-rollout first", rollout.string());
    io::Manifest manifest = c.new_manifest("grpo");
    const io::Manifest source = io::read_manifest(rollout);
    std::vector<std::string> shards;
    for (const auto& [name, digest] : source.outputs) shards.push_back(name);

    const auto policy = c.starting_policy();
    pipeline::Pipeline model(c.model(), policy);
    const rl::SamplingSpec spec = c.sampling(model);
    const std::vector<Group> groups = load_groups(c, model, spec, shards);
    const nn::ParameterStore& weights = model.dit_weights();
    const std::int64_t size = weights.flat().elements();
    OptimizerState state = load_state(policy, size);
    Arena gradient_arena("gradients", static_cast<std::size_t>(size) * sizeof(float) + Arena::alignment);
    const nn::ParameterStore gradients(weights.table(), gradient_arena);
    const std::span<float> gradient(gradients.data(), static_cast<std::size_t>(size));
    const auto ranges = decay_ranges(weights.table());
    optim::GradientNorm gradient_norm(size);
    rl::ObjectiveConfig objective;
    objective.clip = c.config.number("grpo.clip");
    const optim::AdamWConfig adamw{c.config.number("grpo.beta1"), c.config.number("grpo.beta2"), 1e-8, c.config.number("grpo.weight_decay")};
    const double terms = static_cast<double>(shards.size()) * spec.members * static_cast<double>(spec.trained_steps.size());
    const dit::Keep keep = c.config.flag("compute.recompute") ? dit::Keep::inputs : dit::Keep::activations;

    double all = 0, dropped = 0;
    nlohmann::json metrics{{"stage", "grpo"}, {"task", c.task}, {"iteration", c.iteration}};
    metrics["reward"] = reward_means(*c.world, groups, all, dropped);
    metrics["groups"] = all;
    metrics["groups_dropped"] = dropped;
    for (std::int64_t update = 0; update < c.config.integer("grpo.updates"); ++update) {
        std::fill(gradient.begin(), gradient.end(), 0.0f);
        rl::ObjectiveStats stats;
        for (const Group& g : groups) {
            if (g.dropped()) continue;
            const std::vector<double> advantage(g.samples.advantage.begin(), g.samples.advantage.end());
            const auto build = [&](Arena& arena) {
                return rl::GroupPolicy(model.dit(), weights, g.prompt.conditional, spec.uses_guidance() ? &g.prompt.unconditional : nullptr,
                                       spec, keep, arena);
            };
            Arena measure = Arena::measuring("group");
            build(measure);
            Arena arena("group", measure.used());
            rl::GroupPolicy group = build(arena);
            stats.merge(group.train(objective, trajectory_of(g.samples), advantage, 1.0 / terms, gradients));
        }
        c.world->sum(gradient);
        const double norm = std::sqrt(gradient_norm.sum_of_squares(gradient));
        ATELIER_CHECK_KIND(ErrorKind::numeric, std::isfinite(norm), "the gradient of iteration {} of task {} is not finite", c.iteration, c.task);
        ++state.update;
        optim::adamw_step(adamw, c.config.number("grpo.learning_rate"), state.update,
                          optim::clip_scale(norm, c.config.number("grpo.max_grad_norm")), ranges, gradient,
                          {weights.data(), static_cast<std::size_t>(size)}, state.m, state.v);
        double sums[4] = {stats.terms, stats.ratio, stats.clipped, stats.loss};
        c.world->sum(std::span(sums));
        metrics["gradient_norm"] = norm;
        metrics["ratio_mean"] = sums[0] > 0 ? sums[1] / sums[0] : 1.0;
        metrics["clip_share"] = sums[0] > 0 ? sums[2] / sums[0] : 0.0;
        metrics["loss"] = sums[3] / terms;
    }
    if (c.world->is_root()) {
        io::publish_directory(directory, [&](const std::filesystem::path& temporary) {
            dit::save(weights, policy / "config.json", temporary, DType::f32);
            save_state(temporary, state, c);
            manifest.inputs["rollout/manifest.json"] = io::digest_file(rollout / io::manifest_name);
            manifest.outputs = {{"config.json", {}}, {"diffusion_pytorch_model.safetensors", {}}, {training_name, {}}};
            manifest.facts = metrics;
            io::publish_manifest(temporary, manifest);
        });
        std::ofstream out(c.run.metrics(), std::ios::app);
        out << metrics.dump() << '\n';
        out.flush();
        ATELIER_CHECK_IO(out.good(), "cannot append to {}", c.run.metrics().string());
        std::cerr << metrics.dump() << '\n';
    }
    c.world->barrier();
    return 0;
}

}  // namespace atelier::stage
