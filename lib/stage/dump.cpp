#include "stage/dump.hpp"

#include <numeric>

#include "core/progress.hpp"
#include "core/signals.hpp"
#include "distill/student_sampler.hpp"
#include "distill/student_states.hpp"
#include "flow/noise.hpp"
#include "io/trajectory.hpp"
#include "stage/group_rollout.hpp"
#include "stage/picture_sizes.hpp"
#include "stage/run_model.hpp"
#include "stage/student.hpp"
#include "stage/timeline.hpp"

namespace atelier::stage {
namespace {

/// One prompt's trajectories on their way from the student to the teacher.
struct Group {
    std::size_t unit = 0;
    const Prompt* prompt = nullptr;
    distill::StudentSpec spec;
    EncodedPair encoded;
    distill::StudentTrajectory trajectory;
};

io::TrajectorySamples samples_of(const Group& g, std::vector<float> teacher_velocity,
                                 std::int64_t channels) {
    const distill::StudentSpec& spec = g.spec;
    io::TrajectorySamples s;
    s.height = spec.target.height;
    s.width = spec.target.width;
    s.channels = channels;
    s.steps = s.trained = spec.schedule.steps();
    for (int m = 0; m < spec.members; ++m) {
        s.sample_id.push_back(g.unit * static_cast<std::uint64_t>(spec.members) +
                              static_cast<std::uint64_t>(m));
        s.prompt.push_back(0);
        s.member.push_back(static_cast<std::uint32_t>(m));
        const RandomKey& key = g.trajectory.noise_key[static_cast<std::size_t>(m)];
        s.noise_key.insert(s.noise_key.end(), {key.low, key.high});
        s.sigma.insert(s.sigma.end(), spec.schedule.sigmas.begin(), spec.schedule.sigmas.end());
        for (int step = 0; step < spec.schedule.steps(); ++step) {
            const double eta = spec.sampler == flow::Sampler::ode ? 0.0 : spec.eta;
            s.is_sde.push_back(
                flow::transition(spec.sampler, eta, spec.schedule.sigmas, step).has_log_prob() ? 1
                                                                                               : 0);
            s.trained_step.push_back(static_cast<std::uint32_t>(step));
        }
    }
    s.x = g.trajectory.x;
    s.x_next = g.trajectory.x_next;
    s.log_prob = g.trajectory.log_prob;
    s.latents = g.trajectory.latents;
    s.teacher_velocity = std::move(teacher_velocity);
    s.status.assign(static_cast<std::size_t>(spec.members),
                    static_cast<std::uint8_t>(io::SampleStatus::complete));
    return s;
}

}  // namespace

int run_teacher_dump(const Context& c) {
    const std::string& task = c.policy;
    const std::int64_t round = c.iteration;
    ATELIER_CHECK_USAGE(round <= c.config.integer("distill.rounds"), "round {} of {}", round,
                        c.config.integer("distill.rounds"));
    const auto directory = c.run.dump(round, task);
    const StageLock stage = begin_stage(c, directory, directory);
    if (stage.is_complete) return 0;
    require_same_model(c);
    io::Manifest manifest = c.new_manifest("teacher_dump");
    StageMemory memory;
    const auto teacher = c.final_policy(task);
    const auto pool = training_prompts(c, task);
    std::vector<Prompt> drawn;
    for (const std::size_t i : draw_prompts(
             pool.size(),
             std::min(pool.size(), static_cast<std::size_t>(c.config.integer("distill.prompts"))),
             c.seed(), task_number("opd/" + task), static_cast<std::uint64_t>(round)))
        drawn.push_back(pool.at(i));
    put_sizes_together(c, drawn);
    const StudentStart start = student_start(c, round, reads_weights);
    pipeline::Pipeline model(c.model(), start.source, c.placement());
    const distill::StudentSpec spec = student_spec(c, model.schedule_config());
    const auto spec_of = [&](const Prompt& prompt) {
        return on_grid(spec, model.schedule_config(), target_grid(c, prompt));
    };
    const rl::SamplingSpec sampling = c.sampling(model);
    const bool guided = sampling.uses_guidance();
    const std::string config_hash = c.config.hash(), teacher_hash = weights_hash(*c.world, teacher);
    load_start(start, model);
    auto header = shard_header(c, "teacher_dump", sampling, start.hash);
    // The student draws without guidance; the teacher's is in its velocities.
    header.sampler = flow::name_of(spec.sampler);
    header.eta = spec.eta;
    header.log_prob = flow::name_of(flow::LogProb::mean);
    header.guidance_scale = 1;
    header.guidance_train = flow::name_of(flow::GuidanceTrain::none);
    header.inputs_hash = teacher_hash;

    // This rank's prompts that no earlier run has published.
    std::vector<std::size_t> units;
    for (std::size_t unit = 0; unit < drawn.size(); ++unit) {
        if (!c.is_mine(unit)) continue;
        const auto path = directory / GroupRollout::shard_name(unit);
        if (std::filesystem::exists(path)) {
            const auto shard = io::read_trajectory(path, config_hash, io::TrajectoryParts::scores_and_references);
            ATELIER_CHECK_INPUT(shard.header.model_hash == start.hash && shard.header.inputs_hash == teacher_hash,
                                "{} holds another student's trajectories, or another teacher's velocities: remove it", path.string());
            require_same_prompt(c, drawn[unit], shard.prompts, path);
        } else {
            units.push_back(unit);
        }
    }
    const auto resident = static_cast<std::size_t>(c.config.integer("distill.resident_groups"));
    Workspace workspace("trajectories");
    ShardWriter writer;
    {
        const PromptSource mine{units.size(), [&](std::size_t i) { return drawn[units[i]]; }};
        workspace.reserve(hold_dump(memory.plan, memory.add_model(c, model, mine, guided, spec.members), spec, guided,
                                    units.size(), resident, start.teachers.empty() ? 0 : model.mean_bytes()));
        memory.say(c);
    }
    const std::size_t own_turns = (units.size() + resident - 1) / resident;
    const auto turns = static_cast<std::size_t>(c.world->max(static_cast<double>(own_turns)));
    Progress progress(fmt::format("teacher-dump {} {}", task, round), "samples",
                      static_cast<std::int64_t>(units.size()) * spec.members, !c.world->is_root());
    std::size_t done = 0;  // prompts
    Timeline timeline;
    for (std::size_t turn = 0; turn < turns && !stop_was_asked(*c.world); ++turn) {
        if (turn * resident >= units.size()) continue;  // other ranks have more
        std::vector<Group> groups;
        if (turn > 0) load_start(start, model);
        std::size_t drawn_groups = 0;
        // Groups of one size that fill a micro-batch are drawn together.
        const auto draw_waiting = [&] {
            const std::span waiting = std::span(groups).subspan(drawn_groups);
            if (waiting.empty()) return;
            std::vector<const pipeline::EncodedPrompt*> prompts;
            std::vector<RandomKey> keys;
            for (const Group& g : waiting) {
                prompts.push_back(&g.encoded.conditional);
                for (int m = 0; m < spec.members; ++m)
                    keys.push_back(flow::sample_noise_key(c.seed(), static_cast<std::uint64_t>(round), task_number("opd/" + task) ^ g.prompt->number,
                                                          static_cast<std::uint64_t>(m)));
            }
            auto trajectories = timeline.measure("sampling", static_cast<std::int64_t>(waiting.front().unit), [&] {
                return workspace
                    .build([&](Arena& arena) { return distill::StudentSampler(model.dit(), model.dit_weights(), prompts, waiting.front().spec, arena); })
                    .sample(keys);
            });
            for (std::size_t i = 0; i < waiting.size(); ++i) waiting[i].trajectory = std::move(trajectories[i]);
            drawn_groups = groups.size();
        };
        for (std::size_t i = turn * resident; i < std::min(units.size(), (turn + 1) * resident) && !signal_was_seen(); ++i) {
            Group g;
            g.unit = units[i];
            g.prompt = &drawn[g.unit];
            g.spec = spec_of(*g.prompt);
            g.encoded = encode_pair(model, c, *g.prompt, guided);
            if (groups.size() - drawn_groups == distill::StudentSampler::prompts_together(g.spec) ||
                (groups.size() > drawn_groups &&
                 !(groups.back().spec.target == g.spec.target && groups.back().encoded.has_sizes_of(g.encoded))))
                draw_waiting();
            groups.push_back(std::move(g));
        }
        if (signal_was_seen()) continue;  // a turn may take long: a rank leaves it by itself, and the others hear of it at the next one
        draw_waiting();
        model.load_transformer(teacher);
        for (Group& g : groups) {
            if (signal_was_seen()) break;
            const auto unit = static_cast<std::int64_t>(g.unit);
            auto velocity = timeline.measure("velocities", unit, [&] {
                return workspace
                    .build([&](Arena& arena) {
                        return distill::StudentStates(model.dit(), model.dit_weights(), g.encoded.conditional, guided ? &g.encoded.unconditional : nullptr,
                                                      g.spec, dit::Keep::nothing, arena);
                    })
                    .velocities(guided ? sampling.guidance : flow::Guidance{}, g.trajectory.x);
            });
            io::TrajectoryShard shard;
            shard.header = header;
            shard.prompts = prompt_table(c, *g.prompt);
            shard.shapes.push_back(
                samples_of(g, std::move(velocity), model.dit().config().in_channels));
            timeline.measure("decode", unit, [&] { decode_pictures(model, shard.shapes[0]); });
            writer.put(directory / GroupRollout::shard_name(g.unit), std::move(shard));
            progress.update(static_cast<std::int64_t>(++done) * spec.members);
        }
    }
    writer.finish();
    if (c.world->any(done < units.size())) {
        if (c.world->is_root()) log_line("stopped by a signal before all prompts were done");
        return static_cast<int>(ErrorKind::requeue);
    }
    timeline.publish(*c.world, directory);
    const auto digests = gather_digests(*c.world, writer.digests());
    c.world->barrier();
    if (c.world->is_root()) {
        manifest.inputs["student"] = {0, start.hash};
        manifest.inputs["teacher"] = {0, teacher_hash};
        manifest.facts = {{"groups", drawn.size()},
                          {"group_size", spec.members},
                          {"teacher_guidance_scale", guided ? sampling.guidance.scale : 1.0}};
        memory.finish(c, manifest);
        publish_shards(directory, drawn.size(), digests, manifest);
    }
    c.world->barrier();
    return 0;
}

}  // namespace atelier::stage
