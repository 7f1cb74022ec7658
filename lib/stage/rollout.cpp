#include "stage/rollout.hpp"

#include <algorithm>
#include <chrono>
#include <iostream>
#include <nlohmann/json.hpp>

#include "flow/noise.hpp"
#include "io/image/png.hpp"
#include "io/trajectory.hpp"
#include "rl/advantage.hpp"
#include "world/measure.hpp"

namespace atelier::stage {
namespace {

std::string shard_name(std::size_t unit) { return fmt::format("shard-{:05}.h5", unit); }

/// Everything random of a member comes from (seed, iteration, task and prompt, member).
std::vector<RandomKey> group_keys(const Context& c, const Prompt& prompt, int members) {
    std::vector<RandomKey> keys;
    for (int m = 0; m < members; ++m)
        keys.push_back(flow::sample_noise_key(c.seed(), static_cast<std::uint64_t>(c.iteration), task_number(c.task) ^ prompt.number,
                                              static_cast<std::uint64_t>(m)));
    return keys;
}

io::TrajectorySamples samples_of(const rl::SamplingSpec& spec, const rl::GroupTrajectory& t, std::uint64_t first_id,
                                 std::int64_t channels) {
    io::TrajectorySamples s;
    s.height = spec.target.height;
    s.width = spec.target.width;
    s.channels = channels;
    s.steps = spec.schedule.steps();
    s.trained = static_cast<std::int64_t>(spec.trained_steps.size());
    for (int m = 0; m < spec.members; ++m) {
        s.sample_id.push_back(first_id + static_cast<std::uint64_t>(m));
        s.prompt.push_back(0);
        s.member.push_back(static_cast<std::uint32_t>(m));
        const RandomKey& key = t.noise_key[static_cast<std::size_t>(m)];
        s.noise_key.insert(s.noise_key.end(), {key.low, key.high});
        s.sigma.insert(s.sigma.end(), spec.schedule.sigmas.begin(), spec.schedule.sigmas.end());
        std::vector<std::uint8_t> sde(static_cast<std::size_t>(s.steps));
        for (int step : spec.trained_steps) sde[static_cast<std::size_t>(step)] = 1;
        s.is_sde.insert(s.is_sde.end(), sde.begin(), sde.end());
        s.trained_step.insert(s.trained_step.end(), spec.trained_steps.begin(), spec.trained_steps.end());
    }
    s.x = t.x;
    s.x_next = t.x_next;
    s.log_prob = t.log_prob;
    s.latents = t.latents;
    s.status.assign(static_cast<std::size_t>(spec.members), static_cast<std::uint8_t>(io::SampleStatus::complete));
    return s;
}

void decode_pictures(pipeline::Pipeline& model, io::TrajectorySamples& s) {
    const std::int64_t n = s.samples(), planes = model.vae().config().channels;
    ATELIER_CHECK_INPUT(planes == 4, "pictures are stored as RGBA, the VAE gives {} channels", planes);
    s.picture_height = s.height * model::pixels_per_latent;
    s.picture_width = s.width * model::pixels_per_latent;
    std::vector<float> pixels(static_cast<std::size_t>(n * s.picture_height * s.picture_width * planes));
    model.codec().decode(Tensor::of(s.latents.data(), {n, s.tokens(), s.channels}), s.height, s.width,
                         Tensor::of(pixels.data(), {n, s.picture_height, s.picture_width, planes}));
    s.picture.resize(pixels.size());
    vae::to_bytes(pixels.data(), static_cast<std::int64_t>(pixels.size()), s.picture.data());
}

/// Scores every member, then totals and advantages of the group, all dimensions that tell members apart weighing the same.
void score_group(const Prompt& prompt, double min_spread, io::TrajectorySamples& s) {
    const auto attributes = nlohmann::json::parse(prompt.attributes);
    const auto n = static_cast<std::size_t>(s.samples()), bytes = s.picture.size() / n;
    for (std::size_t m = 0; m < n; ++m) {
        const auto begin = std::chrono::steady_clock::now();
        const auto verdicts = world::measure(attributes, std::span(s.picture).subspan(m * bytes, bytes));
        const std::chrono::duration<float> seconds = std::chrono::steady_clock::now() - begin;
        for (const auto& [name, verdict] : verdicts) {
            io::RewardColumn& column = s.reward[name];
            column.score.push_back(static_cast<float>(verdict.score));
            column.present.push_back(verdict.present ? 1 : 0);
            column.seconds.push_back(seconds.count() / static_cast<float>(verdicts.size()));
            column.reason.push_back(verdict.reason);
        }
    }
    const std::size_t dimensions = s.reward.size();
    std::vector<float> scores(n * dimensions);
    std::vector<std::uint8_t> present(n * dimensions);
    std::size_t k = 0;
    for (const auto& [name, column] : s.reward) {
        for (std::size_t m = 0; m < n; ++m) {
            scores[m * dimensions + k] = column.score[m];
            present[m * dimensions + k] = column.present[m];
        }
        ++k;
    }
    // A dimension without spread keeps its place in the mean reward and loses its say in the advantage: z-scores would blow its
    // rounding up to full size.
    std::vector<double> weights(dimensions, 1.0);
    double heard = 0;
    for (std::size_t d = 0; d < dimensions; ++d) {
        float low = 6, high = 0;
        for (std::size_t m = 0; m < n; ++m)
            if (present[m * dimensions + d] != 0) {
                low = std::min(low, scores[m * dimensions + d]);
                high = std::max(high, scores[m * dimensions + d]);
            }
        if (high - low < min_spread) weights[d] = 0;
        heard += weights[d];
    }
    if (heard == 0) weights.assign(dimensions, 1.0);  // the whole group is dropped below
    rl::AdvantageConfig advantage;
    advantage.min_spread = min_spread;
    const auto group = rl::group_advantage(advantage, static_cast<int>(n), scores, present, weights);
    for (std::size_t m = 0; m < n; ++m) {
        double sum = 0, count = 0;
        for (std::size_t d = 0; d < dimensions; ++d)
            if (present[m * dimensions + d] != 0) sum += scores[m * dimensions + d], ++count;
        s.total.push_back(static_cast<float>(count > 0 ? sum / count : 0));
        s.advantage.push_back(static_cast<float>(group.advantage[m]));
        if (group.dropped) s.status[m] = static_cast<std::uint8_t>(io::SampleStatus::group_dropped);
    }
}

io::TrajectoryPrompts prompt_table(const Context& c, const Prompt& prompt) {
    io::TrajectoryPrompts p;
    p.id = {prompt.id};
    p.text = {prompt.text};
    p.negative = {c.config.text("task." + c.task + ".negative")};
    p.category = {prompt.category};
    p.task = {c.task};
    p.attributes = {prompt.attributes};
    for (const auto& path : prompt.images) {
        const io::Image image = io::read_png(path);
        io::ReferenceImage reference{0, image.height, image.width, {}};
        for (std::size_t i = 0; i < image.pixels.size(); i += static_cast<std::size_t>(image.channels))
            for (int k = 0; k < 4; ++k)
                reference.rgba.push_back(k < image.channels ? image.pixels[i + static_cast<std::size_t>(k)] : 255);
        p.images.push_back(std::move(reference));
    }
    return p;
}

}  // namespace

int run_rollout(const Context& c) {
    const auto directory = c.run.rollout(c.task, c.iteration);
    bool complete = false;
    const auto lock = begin_stage(c, directory, complete);
    if (complete) {
        if (c.world->is_root()) std::cerr << directory.string() << " is complete already\n";
        return 0;
    }
    io::Manifest manifest = c.new_manifest("rollout");
    const auto policy = c.starting_policy();
    pipeline::Pipeline model(c.model(), policy);
    const rl::SamplingSpec spec = c.sampling(model);
    const auto prompts = read_prompts(c.config.text("task." + c.task + ".train"));
    const auto drawn = draw_prompts(prompts.size(), static_cast<std::size_t>(c.config.integer("rollout.prompts_per_iteration")), c.seed(),
                                    task_number(c.task), static_cast<std::uint64_t>(c.iteration));
    const std::string config_hash = c.config.hash();
    const auto weights_file = policy / "diffusion_pytorch_model.safetensors";
    const std::string model_hash = std::filesystem::exists(weights_file) ? io::digest_file(weights_file).hash : "sharded";
    // Every rank goes through the same number of rounds, so that all of them can agree to stop.
    const auto ranks = static_cast<std::size_t>(c.world->size());
    for (std::size_t first = 0; first < drawn.size(); first += ranks) {
        if (stop_was_asked(*c.world)) {
            if (c.world->is_root()) std::cerr << "stopped by a signal with " << first << " of " << drawn.size() << " groups published\n";
            return static_cast<int>(ErrorKind::requeue);
        }
        const std::size_t unit = first + static_cast<std::size_t>(c.world->rank());
        if (unit >= drawn.size()) continue;
        const auto path = directory / shard_name(unit);
        if (std::filesystem::exists(path)) {
            io::read_trajectory(path, config_hash);  // published by an earlier run of this stage
            continue;
        }
        const Prompt& prompt = prompts[drawn[unit]];
        const EncodedPair pair = encode_pair(model, c, prompt, spec);
        const auto build = [&](Arena& arena) {
            return rl::GroupPolicy(model.dit(), model.dit_weights(), pair.conditional,
                                   spec.uses_guidance() ? &pair.unconditional : nullptr, spec, dit::Keep::nothing, arena);
        };
        Arena measure = Arena::measuring("group");
        build(measure);
        Arena arena("group", measure.used());
        rl::GroupPolicy group = build(arena);
        const auto trajectory = group.sample(group_keys(c, prompt, spec.members));
        io::TrajectoryShard shard;
        shard.header = {c.run.root.filename().string(), "rollout", c.task, flow::name_of(spec.sampler), flow::name_of(spec.guidance_train),
                        flow::name_of(spec.log_prob), config_hash, model_hash, code_version(), io::utc_now(), c.iteration,
                        c.world->rank(), c.world->size(), spec.eta, spec.guidance.scale};
        shard.prompts = prompt_table(c, prompt);
        shard.shapes.push_back(samples_of(spec, trajectory, unit * static_cast<std::uint64_t>(spec.members), model.dit().config().in_channels));
        decode_pictures(model, shard.shapes[0]);
        score_group(prompt, c.config.number("reward.min_spread"), shard.shapes[0]);
        io::publish_file(path, [&](const std::filesystem::path& temporary) { io::write_trajectory(temporary, shard); });
    }
    c.world->barrier();
    if (c.world->is_root()) {
        manifest.inputs["policy"] = {0, model_hash};
        for (std::size_t unit = 0; unit < drawn.size(); ++unit) manifest.outputs[shard_name(unit)] = {};
        manifest.facts = {{"groups", drawn.size()}, {"group_size", spec.members}};
        io::publish_manifest(directory, manifest);
    }
    c.world->barrier();
    return 0;
}

}  // namespace atelier::stage
