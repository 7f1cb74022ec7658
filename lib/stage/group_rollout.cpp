#include "stage/group_rollout.hpp"

#include <algorithm>
#include <cmath>
#include <deque>

#include "core/progress.hpp"
#include "core/signals.hpp"
#include "flow/noise.hpp"
#include "io/image/png.hpp"
#include "io/trajectory_index.hpp"
#include "model/processor/image_inputs.hpp"
#include "stage/picture_sizes.hpp"
#include "stage/scorers.hpp"

namespace atelier::stage {
namespace {

io::TrajectorySamples samples_of(const rl::SamplingSpec& spec, rl::GroupTrajectory&& t,
                                 std::uint64_t first_id, std::int64_t channels) {
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
        s.trained_step.insert(s.trained_step.end(), spec.trained_steps.begin(),
                              spec.trained_steps.end());
    }
    s.x = std::move(t.x);
    s.x_next = std::move(t.x_next);
    s.log_prob = std::move(t.log_prob);
    s.log_prob_guided = std::move(t.log_prob_guided);
    s.latents = std::move(t.latents);
    s.status.assign(static_cast<std::size_t>(spec.members),
                    static_cast<std::uint8_t>(io::SampleStatus::complete));
    return s;
}

}  // namespace

std::vector<RandomKey> group_keys(const Context& c, const Prompt& prompt, int members) {
    // A teacher's stream is its task's; the mixed policy has one for each of its tasks.
    const std::uint64_t stream =
        task_number(c.policy == prompt.task ? c.policy : c.policy + "/" + prompt.task);
    std::vector<RandomKey> keys;
    for (int m = 0; m < members; ++m)
        keys.push_back(flow::sample_noise_key(c.seed(), static_cast<std::uint64_t>(c.iteration),
                                              stream ^ prompt.number,
                                              static_cast<std::uint64_t>(m)));
    return keys;
}

io::TrajectoryPrompts prompt_table(const Context& c, const Prompt& prompt) {
    io::TrajectoryPrompts p;
    p.id = {prompt.id};
    p.text = {prompt.text};
    p.negative = {c.negative(prompt.task)};
    p.category = {prompt.category};
    p.task = {prompt.task};
    p.attributes = {prompt.attributes};
    for (const auto& path : prompt.images) {
        const io::Image image = io::read_png(path);
        io::ReferenceImage reference{0, image.height, image.width, {}};
        for (std::size_t i = 0; i < image.pixels.size();
             i += static_cast<std::size_t>(image.channels))
            for (int k = 0; k < 4; ++k)
                reference.rgba.push_back(
                    k < image.channels ? image.pixels[i + static_cast<std::size_t>(k)] : 255);
        p.images.push_back(std::move(reference));
    }
    return p;
}

void require_same_prompt(const Context& c, const Prompt& prompt, const io::TrajectoryPrompts& stored, const std::filesystem::path& shard) {
    const io::TrajectoryPrompts now = prompt_table(c, prompt);
    const std::pair<const char*, bool> parts[] = {{"id", now.id == stored.id},
                                                  {"text", now.text == stored.text},
                                                  {"category", now.category == stored.category},
                                                  {"attributes", now.attributes == stored.attributes},
                                                  {"reference pictures", now.images == stored.images}};
    for (const auto& [part, is_same] : parts)
        ATELIER_CHECK_INPUT(is_same, "{} was drawn for another prompt: the {} of prompt {} in {} changed since; give the file its former state, or "
                            "remove the directory of the shard and make it again",
                            shard.string(), part, prompt.id, c.config.text("task." + prompt.task + ".train"));
}

io::TrajectoryHeader shard_header(const Context& c, const std::string& stage,
                                  const rl::SamplingSpec& spec, const std::string& model_hash) {
    return {c.run.root.filename().string(),
            stage,
            c.policy,
            flow::name_of(spec.sampler),
            flow::name_of(spec.guidance_train),
            flow::name_of(spec.log_prob),
            c.config.hash(),
            model_hash,
            code_version(),
            io::utc_now(),
            c.iteration,
            c.world->rank(),
            c.world->size(),
            spec.eta,
            spec.uses_guidance() ? spec.guidance.scale : 1.0};
}

void decode_pictures(pipeline::Pipeline& model, io::TrajectorySamples& s) {
    const std::int64_t n = s.samples(), planes = model.vae().config().channels;
    ATELIER_CHECK_INPUT(planes == 4, "pictures are stored as RGBA, the VAE gives {} channels",
                        planes);
    const std::size_t numbers = s.latents.size() / static_cast<std::size_t>(std::max<std::int64_t>(n, 1));
    for (std::size_t i = 0; i < s.latents.size(); ++i)
        ATELIER_CHECK_KIND(ErrorKind::numeric, std::isfinite(s.latents[i]), "sample {}: the latents that were drawn hold {}: the weights have diverged",
                           s.sample_id.at(i / numbers), s.latents[i]);
    s.picture_height = s.height * model::pixels_per_latent;
    s.picture_width = s.width * model::pixels_per_latent;
    std::vector<float> pixels(
        static_cast<std::size_t>(n * s.picture_height * s.picture_width * planes));
    const DeviceTurn turn(model.vae().device());
    model.codec().decode(Tensor::of(s.latents.data(), {n, s.tokens(), s.channels}), s.height,
                         s.width,
                         Tensor::of(pixels.data(), {n, s.picture_height, s.picture_width, planes}));
    s.picture.resize(pixels.size());
    vae::to_bytes(pixels.data(), static_cast<std::int64_t>(pixels.size()), s.picture.data());
}

void publish_shards(const std::filesystem::path& directory, std::size_t count,
                    const std::map<std::string, io::FileDigest>& digests, io::Manifest manifest) {
    std::vector<std::string> shards;
    for (std::size_t unit = 0; unit < count; ++unit)
        shards.push_back(GroupRollout::shard_name(unit));
    for (const std::string& name : io::publish_trajectory_index(directory, shards)) manifest.outputs[name] = {};
    for (const std::string& name : shards)
        manifest.outputs[name] = digests.contains(name) ? digests.at(name) : io::FileDigest{};
    io::publish_manifest(directory, std::move(manifest));
}

GroupRollout::GroupRollout(const Context& context, pipeline::Pipeline& model,
                           const rl::SamplingSpec& spec, const std::string& stage,
                           const std::filesystem::path& transformer,
                           std::filesystem::path directory, States states)
    : context_(context),
      model_(model),
      spec_(spec),
      stage_(stage),
      config_hash_(context.config.hash()),
      model_hash_(weights_hash(*context.world, transformer)),
      directory_(std::move(directory)),
      states_(states),
      scoring_(context),
      scorer_files_(scorer_inputs(context)) {}

std::string GroupRollout::shard_name(std::size_t unit) {
    return fmt::format("shard-{:05}.h5", unit);
}

bool GroupRollout::Pending::is_scored() const {
    return std::all_of(outcomes.begin(), outcomes.end(), [](const auto& f) {
        return f.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
    });
}

rl::SamplingSpec GroupRollout::spec_of(const Prompt& prompt) const {
    return on_grid(spec_, model_.schedule_config(), target_grid(context_, prompt));
}

rl::GroupPolicy GroupRollout::build(const EncodedPair& pair, const rl::SamplingSpec& spec,
                                    Arena& arena) const {
    return rl::GroupPolicy(model_.dit(), model_.dit_weights(), pair.conditional,
                           spec.uses_guidance() ? &pair.unconditional : nullptr, spec,
                           dit::Keep::nothing, arena);
}

void GroupRollout::reserve(const PromptSource& prompts, StageMemory& memory) {
    const DeviceTurn turn(context_.device());
    const ModelOutline outline =
        memory.add_model(context_, model_, my_prompts(context_, prompts), spec_.uses_guidance(), spec_.members);
    workspace_.reserve(hold_rollout(memory.plan, outline, spec_, states_ == States::kept,
                                    scoring_.memory(picture_bytes(outline.largest()))));
    memory.say(context_);
}

std::optional<GroupRollout::Pending> GroupRollout::sample(std::size_t unit, Prompt prompt) {
    const auto group = static_cast<std::int64_t>(unit);
    std::optional<Pending> drawn = timeline_.measure("sampling", group, [&] { return draw(unit, std::move(prompt)); });
    if (!drawn) return drawn;
    Pending& pending = *drawn;
    io::TrajectorySamples& samples = pending.shard.shapes[0];
    timeline_.measure("decode", group, [&] {
        const DeviceTurn mine = turn(group);
        decode_pictures(model_, samples);
    });
    const std::vector<const Prompt*> asked(static_cast<std::size_t>(spec_.members), &pending.prompt);
    pending.outcomes =
        timeline_.measure("hand over", group, [&] { return scoring_.submit(asked, samples); });
    scoring_.add_truth(asked, samples);  // while others judge
    return drawn;
}

DeviceTurn GroupRollout::turn(std::int64_t group) {
    const Device device = context_.device();
    if (device == Device::cpu) return DeviceTurn(device);
    return timeline_.measure("device wait", group, [&] { return DeviceTurn(device); });
}

std::optional<GroupRollout::Pending> GroupRollout::draw(std::size_t unit, Prompt prompt) {
    const DeviceTurn mine = turn(static_cast<std::int64_t>(unit));
    const EncodedPair pair = encode_pair(model_, context_, prompt, spec_.uses_guidance());
    const rl::SamplingSpec spec = spec_of(prompt);
    rl::GroupPolicy group =
        workspace_.build([&](Arena& arena) { return build(pair, spec, arena); });
    auto trajectory = group.sample(group_keys(context_, prompt, spec_.members), signal_was_seen);
    if (!trajectory) return std::nullopt;
    Pending pending;
    pending.unit = unit;
    pending.shard.header = shard_header(context_, stage_, spec_, model_hash_);
    pending.shard.header.inputs_hash = inputs_hash(scorer_files_, std::span(&prompt, 1));
    pending.shard.prompts = prompt_table(context_, prompt);
    pending.shard.shapes.push_back(samples_of(
        spec, std::move(*trajectory),
        unit * static_cast<std::uint64_t>(spec_.members), model_.dit().config().in_channels));
    if (states_ == States::left_out) io::drop_states(pending.shard.shapes[0]);
    pending.prompt = std::move(prompt);
    return pending;
}

void GroupRollout::publish(Pending group, const std::map<std::string, CategoryWeights>& weights) {
    io::TrajectorySamples& s = group.shard.shapes[0];
    const auto unit = static_cast<std::int64_t>(group.unit);
    absent_ += timeline_.measure("gather", unit,
                                 [&] { return store_outcomes(group.outcomes, s, &timeline_, unit); });
    timeline_.measure("publish", unit, [&] { write(std::move(group), weights); });
}

void GroupRollout::write(Pending group, const std::map<std::string, CategoryWeights>& weights) {
    io::TrajectorySamples& s = group.shard.shapes[0];
    const Prompt& prompt = group.prompt;
    const std::string& kind = context_.kind(prompt.task);
    std::map<std::string, double> named;
    if (const auto task = weights.find(prompt.task); task != weights.end())
        if (const auto found = task->second.find(prompt.category); found != task->second.end())
            named = found->second;
    const double gate = kind == "t2i" ? context_.config.number("reward.gate") : 0.0;
    set_advantages(gated_scores(s, scoring_.dimensions(kind), gate, scoring_.tiers(kind)), named,
                   context_.config.number("reward.min_spread"), s);
    writer_.put(directory_ / shard_name(group.unit), std::move(group.shard));
}

std::optional<io::TrajectoryShard> GroupRollout::published(std::size_t unit, const Prompt& prompt) const {
    const auto path = directory_ / shard_name(unit);
    if (!std::filesystem::exists(path)) return std::nullopt;
    auto shard = io::read_trajectory(path, config_hash_, io::TrajectoryParts::scores);
    const io::TrajectoryHeader& h = shard.header;
    ATELIER_CHECK_INPUT(h.model_hash == model_hash_, "{} holds another model's samples: remove it", path.string());
    const std::string expected = inputs_hash(scorer_files_, std::span(&prompt, 1));
    if (h.inputs_hash == expected) return shard;
    // Names what changed.
    require_same_prompt(context_, prompt, io::read_trajectory(path, config_hash_, io::TrajectoryParts::scores_and_references).prompts, path);
    if (h.inputs_hash.empty()) {  // an older version's: who scored it is not known
        log_line(fmt::format("{} does not say what it was made from and is made anew", path.string()));
        std::filesystem::remove(path);
        return std::nullopt;
    }
    ATELIER_FAIL(ErrorKind::input,
                 "{} was scored by another judge, or its prompt's size or pictures were changed since (inputs_hash {} expected, found {}): remove it",
                 path.string(), expected, h.inputs_hash);
}

GroupRollout::End GroupRollout::run(const PromptSource& prompts,
                                    const std::map<std::string, CategoryWeights>& weights) {
    const auto ranks = static_cast<std::size_t>(context_.world->size());
    Progress progress(fmt::format("{} {} {}", stage_, context_.policy, context_.iteration),
                      "samples", static_cast<std::int64_t>(prompts.size) * spec_.members,
                      !context_.world->is_root());
    std::deque<Pending> pending;
    const auto publish_first = [&] {
        Pending group = std::move(pending.front());
        pending.pop_front();
        publish(std::move(group), weights);
    };
    const std::size_t samples = prompts.size * static_cast<std::size_t>(spec_.members);
    std::int64_t all_absent = 0;  // of all ranks, when they last agreed
    const auto too_many_absent = [&] {
        double sum = static_cast<double>(absent_);
        context_.world->sum(std::span(&sum, 1));
        all_absent = static_cast<std::int64_t>(sum);
        return sum / static_cast<double>(samples) > context_.config.number("reward.max_absent");
    };
    bool stopped = false, gave_up = false, fails = false;
    std::size_t done = 0;
    // Every rank goes through the same number of rounds, so that all of them can agree to stop.
    for (std::size_t first = 0; first < prompts.size && !stopped && !fails; first += ranks) {
        stopped = stop_was_asked(*context_.world);
        fails = too_many_absent();  // what comes cannot mend it
        const std::size_t unit = first + static_cast<std::size_t>(context_.world->rank());
        if (stopped || fails || unit >= prompts.size) continue;
        done = std::min(prompts.size, first + ranks);
        Prompt prompt = prompts.at(unit);
        if (const auto shard = published(unit, prompt)) {  // by an earlier run of this stage
            absent_ += absent_samples(*shard);
            progress.start_at(static_cast<std::int64_t>(done) * spec_.members);
            continue;
        }
        auto drawn = sample(unit, std::move(prompt));
        if (!drawn) {  // the next round's agreement, or that behind the loop, tells the others
            gave_up = true;
            continue;
        }
        pending.push_back(std::move(*drawn));
        while (!pending.empty() && (pending.size() > most_pending(scoring_.capacity(), spec_.members) || pending.front().is_scored()))
            publish_first();
        progress.update(static_cast<std::int64_t>(done) * spec_.members);
    }
    while (!pending.empty()) publish_first();
    writer_.finish();
    stopped = context_.world->any(stopped || gave_up);
    timeline_.publish(*context_.world, directory_);
    digests_ = gather_digests(*context_.world, writer_.digests());
    if (stopped) {
        if (context_.world->is_root())
            log_line(fmt::format("stopped by a signal at group {} of {}", done, prompts.size));
        return End::stopped;
    }
    fails = too_many_absent();
    absent_ = all_absent;
    if (fails) {
        for (std::size_t unit = 0; unit < done; ++unit)
            if (context_.is_mine(unit) && std::filesystem::exists(directory_ / shard_name(unit)) &&
                absent_samples(io::read_trajectory(directory_ / shard_name(unit), {}, io::TrajectoryParts::scores)) > 0)
                std::filesystem::remove(directory_ / shard_name(unit));
        context_.world->barrier();
        ATELIER_FAIL(ErrorKind::reward,
                     "{} of {} samples could not be scored, more than reward.max_absent = {} "
                     "allows; their groups were removed and a rerun asks again",
                     absent_, samples, context_.config.number("reward.max_absent"));
    }
    return End::finished;
}

}  // namespace atelier::stage
