#include "stage/memory_entries.hpp"

#include <algorithm>

#include "distill/student_sampler.hpp"
#include "distill/student_states.hpp"
#include "ops/cpu/amx_matmul.hpp"
#include "pipeline/generate.hpp"
#include "pipeline/micro_batch.hpp"
#include "stage/picture_sizes.hpp"
#include "stage/shard_writer.hpp"

namespace atelier::stage {
namespace {

/// Bytes of a workspace that serves one group after another, and what of them the prefixes' keys and values are in the largest.
struct WorkspaceBytes {
    Bytes all, cache;
    void cover(const Bytes& bytes, const Bytes& cached) {
        if (larger(all, bytes) == all) return;
        all = larger(all, bytes);
        cache = cached;
    }
    /// As entries: kept to the end, or during a phase.
    void hold(MemoryPlan& plan, const char* phase = nullptr) const {
        const auto add = [&](const char* what, const Bytes& bytes) {
            if (phase == nullptr)
                plan.hold(what, bytes);
            else
                plan.hold_during(phase, what, bytes);
        };
        add("activations", all - cache);
        add("prefix cache", cache);
    }
};

/// Bytes of what is with the transformer.
Bytes where(const dit::Dit& dit, std::size_t bytes) { return dit.device() == Device::cpu ? Bytes(bytes) : Bytes(0, bytes); }

/// Keys and values of a prefix in all layers, with their gradients where they are trained.
Bytes cache_bytes(const dit::Dit& dit, const pipeline::EncodedPrompt& p, bool trains) {
    const dit::Config& c = dit.config();
    std::int64_t tokens = p.tokens;
    for (const dit::Grid& grid : p.references) tokens += grid.tokens() - grid.tokens() / 4;
    return where(dit, static_cast<std::size_t>(c.layers * tokens * 2 * c.width()) * (size_of(dit.operand_dtype()) + (trains ? sizeof(float) : 0)));
}

/// `guided`: with the unconditional branch.
WorkspaceBytes group_bytes(const ModelOutline& model, const rl::SamplingSpec& spec, bool guided, dit::Keep keep) {
    const nn::ParameterStore none;
    WorkspaceBytes bytes;
    const bool trains = keep != dit::Keep::nothing, trains_both = trains && guided;
    for (const GroupOutline& g : model.groups) {
        const rl::SamplingSpec own = on_grid(spec, model.schedule, g.target);
        bytes.cover(Workspace::measure([&](Arena& arena) {
                        rl::GroupPolicy(*model.dit, none, g.prompt.conditional, guided ? &g.prompt.unconditional : nullptr, own, keep, arena);
                    }),
                    cache_bytes(*model.dit, g.prompt.conditional, trains) +
                        (guided ? cache_bytes(*model.dit, g.prompt.unconditional, trains_both) : Bytes()));
    }
    return bytes;
}

/// Of trajectories that are drawn.
void cover_sampler(WorkspaceBytes& bytes, const ModelOutline& model, const distill::StudentSpec& spec) {
    for (const GroupOutline& g : model.groups) {
        const distill::StudentSpec own = on_grid(spec, model.schedule, g.target);
        const std::size_t together = distill::StudentSampler::prompts_together(own);
        const std::vector prompts(together, &g.prompt.conditional);
        Bytes cache;
        for (std::size_t i = 0; i < together; ++i) cache = cache + cache_bytes(*model.dit, g.prompt.conditional, false);
        bytes.cover(Workspace::measure([&](Arena& arena) { distill::StudentSampler(*model.dit, nn::ParameterStore(), prompts, own, arena); }), cache);
    }
}

/// Of states whose velocities are recorded or trained.
WorkspaceBytes states_bytes(const ModelOutline& model, const distill::StudentSpec& spec, bool guided, dit::Keep keep) {
    const nn::ParameterStore none;
    WorkspaceBytes bytes;
    for (const GroupOutline& g : model.groups) {
        const distill::StudentSpec own = on_grid(spec, model.schedule, g.target);
        bytes.cover(Workspace::measure([&](Arena& arena) {
                        distill::StudentStates(*model.dit, none, g.prompt.conditional, guided ? &g.prompt.unconditional : nullptr, own, keep, arena);
                    }),
                    cache_bytes(*model.dit, g.prompt.conditional, keep != dit::Keep::nothing) +
                        (guided ? cache_bytes(*model.dit, g.prompt.unconditional, false) : Bytes()));
    }
    return bytes;
}

void hold_trainer(MemoryPlan& plan, const ModelOutline& model, const TrainerBytes& trainer, bool has_snapshots) {
    if (model.dit->device() == Device::cpu) plan.hold("turned operands", ops::cpu::turned_operand_bytes(model.dit->config().width()));
    plan.hold("gradients", trainer.gradients);
    plan.hold("optimizer", trainer.optimizer);
    plan.hold_of_libraries("collectives", trainer.collectives);
    if (has_snapshots) plan.hold("state in writing", trainer.snapshot);
    plan.hold_during("publishing", "state's pieces", trainer.publishing);
    plan.hold_during("publishing", "weights to files", trainer.window);
}

/// Bytes of a sample that waits to be scored.
std::size_t waiting_picture_bytes(const ModelOutline& model, const ScoringMemory& scoring) {
    const bool have_sources = std::any_of(model.groups.begin(), model.groups.end(),
                                          [](const GroupOutline& g) { return !g.prompt.conditional.references.empty(); });
    return picture_bytes(model.largest()) * (scoring.sends_sources && have_sources ? 2 : 1);
}

}  // namespace

dit::Grid ModelOutline::largest() const {
    dit::Grid found;
    for (const GroupOutline& g : groups)
        if (g.target.tokens() > found.tokens()) found = g.target;
    return found;
}

void GroupOutlines::cover(const GroupOutline& group) {
    std::string key;
    for (const dit::Grid& grid : group.prompt.conditional.references) key += fmt::format("{}x{} ", grid.height, grid.width);
    GroupOutline& longest = groups_[key + fmt::format("{}x{}", group.target.height, group.target.width)];
    longest.target = group.target;
    if (group.prompt.conditional.tokens > longest.prompt.conditional.tokens) longest.prompt.conditional = group.prompt.conditional;
    if (group.prompt.unconditional.tokens > longest.prompt.unconditional.tokens) longest.prompt.unconditional = group.prompt.unconditional;
}

std::vector<GroupOutline> GroupOutlines::all() const {
    std::vector<GroupOutline> all;
    for (const auto& [key, group] : groups_) all.push_back(group);
    return all;
}

std::size_t picture_bytes(dit::Grid target) {
    return static_cast<std::size_t>(target.tokens() * model::pixels_per_latent * model::pixels_per_latent * 4);
}

std::size_t sample_bytes(dit::Grid target, std::int64_t channels, std::int64_t steps, std::int64_t velocities) {
    return static_cast<std::size_t>(target.tokens() * channels * (2 * steps + velocities + 1)) * sizeof(float) + picture_bytes(target);
}

void hold_model(MemoryPlan& plan, const ModelOutline& model, std::int64_t decoded) {
    if (model.dit->device() != Device::cpu) plan.hold_device_libraries();
    plan.hold("parameters", model.parameters);
    if (model.dit->device() == Device::cpu) plan.hold("packed operands", ops::cpu::packed_operand_bytes(model.dit->config().width(), model.dit->precision()));
    plan.hold("text encoder, autoencoder", model.frozen);
    plan.hold("text encoder's buffers", model.text_encoder);
    plan.hold("autoencoder's buffers", model.autoencoder);
    plan.hold("decoded pictures", static_cast<std::size_t>(decoded) * picture_bytes(model.largest()) * sizeof(float));
}

std::size_t most_pending(std::size_t in_work, int members) {
    return std::max<std::size_t>(1, in_work / static_cast<std::size_t>(members));
}

Bytes hold_rollout(MemoryPlan& plan, const ModelOutline& model, const rl::SamplingSpec& spec, bool keeps_states,
                         const ScoringMemory& scoring) {
    const WorkspaceBytes group = group_bytes(model, spec, spec.uses_guidance(), dit::Keep::nothing);
    group.hold(plan);
    const auto members = static_cast<std::size_t>(spec.members);
    const std::size_t pending = most_pending(scoring.in_work, spec.members);
    const std::int64_t channels = model.dit->config().in_channels, steps = static_cast<std::int64_t>(spec.trained_steps.size());
    const dit::Grid largest = model.largest();
    const std::size_t drawn = members * sample_bytes(largest, channels, steps, 0),
                      kept = keeps_states ? drawn : members * sample_bytes(largest, channels, 0, 0);
    // Samples being scored, and the pool's copies of their pictures.
    plan.hold("groups in work", pending * kept + drawn);
    plan.hold("pictures to score", pending * members * waiting_picture_bytes(model, scoring));
    plan.hold("judge", scoring.judge);
    plan.hold("shards to write", ShardWriter::most_held * kept);
    return group.all;
}

GrpoWorkspaces hold_grpo(MemoryPlan& plan, const ModelOutline& model, const rl::SamplingSpec& spec, dit::Keep keep, const GrpoMemory& memory) {
    const bool guided = spec.trains_both_branches();
    const WorkspaceBytes training = group_bytes(model, spec, guided, keep),
                         base = memory.has_kl ? group_bytes(model, spec, guided, dit::Keep::nothing) : WorkspaceBytes();
    plan.hold("base policy", memory.base_weights + base.all);
    hold_trainer(plan, model, memory.trainer, memory.has_snapshots);
    training.hold(plan, "updating");
    plan.hold_during("updating", "shard",
                     static_cast<std::size_t>(spec.members) * sample_bytes(model.largest(), model.dit->config().in_channels,
                                                                           static_cast<std::int64_t>(spec.trained_steps.size()), 0));
    return {training.all, base.all};
}

Bytes hold_dump(MemoryPlan& plan, const ModelOutline& model, const distill::StudentSpec& spec, bool guided, std::size_t groups,
                std::size_t resident, std::size_t averaging) {
    WorkspaceBytes group = states_bytes(model, spec, guided, dit::Keep::nothing);
    cover_sampler(group, model, spec);
    // The first start is made before the rest is taken, later ones when it is there.
    const char* const phase = groups > resident ? nullptr : "sampling";
    group.hold(plan, phase);
    const auto members = static_cast<std::size_t>(spec.members);
    const std::int64_t channels = model.dit->config().in_channels, steps = spec.schedule.steps();
    const dit::Grid largest = model.largest();
    // Trajectories wait for the teacher without pictures; a shard is copied from one of them.
    const auto hold = [&](const char* what, std::size_t bytes) { phase == nullptr ? plan.hold(what, bytes) : plan.hold_during(phase, what, bytes); };
    hold("resident groups", std::min(groups, resident) * members * (sample_bytes(largest, channels, steps, 0) - picture_bytes(largest)));
    hold("shards to write", (1 + ShardWriter::most_held) * members * sample_bytes(largest, channels, steps, steps));
    plan.hold_during("averaging", "pieces of the mean", averaging);
    return group.all;
}

Bytes hold_distill(MemoryPlan& plan, const ModelOutline& model, const distill::StudentSpec& spec, dit::Keep keep,
                         const TrainerBytes& trainer, bool has_snapshots) {
    const WorkspaceBytes group = states_bytes(model, spec, false, keep);
    hold_trainer(plan, model, trainer, has_snapshots);
    group.hold(plan, "updating");
    plan.hold_during("updating", "shard",
                     static_cast<std::size_t>(spec.members) *
                         sample_bytes(model.largest(), model.dit->config().in_channels, spec.schedule.steps(), spec.schedule.steps()));
    return group.all;
}

Bytes hold_evaluation(MemoryPlan& plan, const ModelOutline& model, const EvaluationMemory& m) {
    Bytes sampling;
    for (const GroupOutline& g : model.groups) {
        pipeline::GenerateRequest r;
        const std::size_t together = std::min(m.shard_pictures / m.pictures,
                                              pipeline::prompts_together(m.micro_batch, static_cast<std::int64_t>(m.pictures), g.target));
        r.conditional.assign(together, &g.prompt.conditional);
        if (m.guided) r.unconditional.assign(together, &g.prompt.unconditional);
        r.target = g.target;
        r.pictures = static_cast<std::int64_t>(m.pictures);
        sampling = larger(sampling, pipeline::generation_bytes(*model.dit, r));
    }
    const dit::Grid largest = model.largest();
    const std::size_t picture = picture_bytes(largest);
    plan.hold_during("drawing", "sampling", sampling);
    plan.hold_during("drawing", "pictures to score", std::min(2 * m.shard_pictures, m.scoring.in_work) * waiting_picture_bytes(model, m.scoring));
    plan.hold_during("drawing", "judge", m.scoring.judge);
    // One is drawn while the last one is scored.
    plan.hold_during("drawing", "shards", 2 * m.shard_pictures * sample_bytes(largest, model.dit->config().in_channels, 0, 0));
    std::size_t shown = 0, widest = 0;
    for (const std::size_t rows : m.rows) {
        shown += rows * m.candidates;
        widest = std::max(widest, rows * (m.candidates + 2));  // a column of references, and these themselves
    }
    plan.hold_during("reporting", "shown pictures", shown * picture);
    plan.hold_during("reporting", "contact sheet", widest * picture);
    return sampling;
}

}  // namespace atelier::stage
