#include "stage/context.hpp"

#include <fmt/format.h>

#include "core/device_turn.hpp"
#include "core/progress.hpp"
#include "core/signals.hpp"
#include "flow/step_choice.hpp"
#include "io/image/png.hpp"
#include "stage/curated.hpp"
#include "stage/retention.hpp"

namespace atelier::stage {

std::filesystem::path RunDirectory::iteration(const std::string& policy,
                                              std::int64_t iteration) const {
    return root / policy / fmt::format("iter-{:04}", iteration);
}
std::filesystem::path RunDirectory::round(std::int64_t round) const {
    return root / "opd" / fmt::format("round-{:02}", round);
}

std::vector<std::string> Context::tasks() const {
    if (policy == mix_policy) return config.tasks();
    return {policy};
}

std::int64_t Context::iterations(const std::string& name) const {
    const std::int64_t own =
        config.integer(name == mix_policy ? "mix.iterations" : "task." + name + ".iterations");
    return own > 0 ? own : config.integer("grpo.iterations");
}

double Context::learning_rate() const {
    const double own = config.number(policy == mix_policy ? "mix.learning_rate"
                                                          : "task." + policy + ".learning_rate");
    return own > 0 ? own : config.number("grpo.learning_rate");
}

std::filesystem::path Context::starting_policy(Reads reads) const {
    if (iteration == 1) return base_transformer();
    auto directory = run.policy(policy, iteration - 1);
    require_complete(*world, directory, fmt::format("run iteration {} of {} first", iteration - 1, policy), reads);
    if (reads == reads_weights_and_state) require_state(directory);
    return directory;
}

std::filesystem::path Context::final_directory(const std::string& name) const {
    const auto directory = run.policy(name, iterations(name));
    return config.number("grpo.ema") > 0 ? directory / "ema" : directory;
}

std::filesystem::path Context::final_policy(const std::string& name) const {
    require_complete(*world, run.policy(name, iterations(name)), fmt::format("policy {} has not had its {} iterations", name, iterations(name)),
                     config.number("grpo.ema") > 0 ? reads_average : reads_weights);
    return final_directory(name);
}

rl::SamplingSpec Context::sampling(const flow::ScheduleConfig& schedule) const {
    rl::SamplingSpec s;
    s.target = {config.integer("sampling.height") / model::pixels_per_latent,
                config.integer("sampling.width") / model::pixels_per_latent};
    s.schedule = flow::make_schedule(schedule, static_cast<int>(config.integer("sampling.steps")), s.target.tokens());
    s.sampler = flow::parse_sampler(config.text("sampling.sampler"));
    s.eta = config.number("sampling.eta");
    s.log_prob = flow::parse_log_prob(config.text("sampling.log_prob"));
    s.guidance = {config.number("sampling.guidance_scale"),
                  config.flag("sampling.guidance_rescale")};
    s.guidance_train = flow::parse_guidance_train(config.text("sampling.guidance_train"));
    s.members = static_cast<int>(config.integer("rollout.group_size"));
    s.micro_batch = static_cast<int>(config.integer("rollout.micro_batch"));
    s.shared_noise = config.flag("rollout.shared_noise");
    flow::StepChoice choice;
    choice.policy = flow::parse_step_policy(config.text("steps.choice"));
    choice.count = static_cast<int>(config.integer("steps.count"));
    choice.gamma = config.number("steps.gamma");
    choice.window_begin = static_cast<int>(config.integer("steps.window_begin"));
    s.trained_steps =
        flow::choose_steps(choice, s.sampler, s.eta, s.schedule.sigmas, seed(),
                           static_cast<std::uint64_t>(iteration), task_number(policy));
    return s;
}

io::Manifest Context::new_manifest(const std::string& stage) const {
    io::Manifest m;
    m.stage = stage;
    m.task = policy;
    m.iteration = static_cast<std::uint64_t>(iteration);
    m.config_hash = config.hash();
    m.code_version = code_version();
    m.started_utc = io::utc_now();
    return m;
}

nn::StorageFormat Context::storage(const nn::ParameterTable& table) const {
    return nn::storage_format(
        table, dit::open_weights(base_transformer()),
        nn::parse_storage_dtype(config.text("checkpoint.dtype")),
        static_cast<std::uint64_t>(config.integer("checkpoint.shard_size")) * 1'000'000);
}

ops::ProductPrecision Context::product_precision() const {
    const std::string& dtype = config.text("compute.dtype");
    if (device() == Device::cuda) return dtype == "f32" ? ops::ProductPrecision::fp32 : ops::ProductPrecision::bf16;
    if (dtype != "bf16") return ops::ProductPrecision::fp32;
    ATELIER_CHECK_USAGE(config.text("checkpoint.dtype") == "bf16",
                        "compute.dtype = bf16 needs checkpoint.dtype = bf16 (found {}): a policy computes with what is stored, and the "
                        "optimizer keeps fp32 weights of its own", config.text("checkpoint.dtype"));
    return ops::ProductPrecision::bf16;
}

pipeline::Placement Context::placement() const {
    pipeline::Placement p(device());
    p.precision = product_precision();
    p.takes_adapter = lora().rank > 0;
    p.text_encoder_on_host = config.text("compute.text_encoder") == "host";
    return p;
}

pipeline::Placement Context::training_placement(comm::Communicator* ranks) const {
    pipeline::Placement p = placement();
    p.ranks = ranks;
    p.weights_change = lora().rank == 0;
    return p;
}

dit::Keep Context::keep(const std::string& recompute) const {
    if (recompute == "none") return dit::Keep::activations;
    if (recompute == "elementwise") return dit::Keep::products;
    return recompute == "full" ? dit::Keep::inputs : dit::Keep::branches;
}

nn::LoraConfig Context::lora(const std::string& keys) const {
    nn::LoraConfig l{config.integer(keys + "rank"), config.number(keys + "alpha"), config.list(keys + "targets")};
    if (l.alpha == 0) l.alpha = static_cast<double>(l.rank);
    return l;
}

void prepare_adapter(const Context& c, pipeline::Pipeline& model) {
    const nn::LoraConfig wanted = c.lora();
    if (wanted.rank == 0) return;
    if (model.adapter() == nullptr) {
        nn::LoraAdapter fresh(model.dit().table(), wanted);
        nn::initialise(fresh.store(), c.seed() ^ task_number("lora/" + c.policy));
        model.set_adapter(std::move(fresh));
        return;
    }
    const nn::LoraTable &found = model.adapter()->table(), expected(model.dit().table(), wanted);
    ATELIER_CHECK_INPUT(found.sizes() == expected.sizes(), "{} holds an adapter of {}; [lora] asks for {}",
                        model.transformer_directory().string(), found.text(), expected.text());
}

StageLock begin_stage(const Context& c, const std::filesystem::path& lock_at,
                      const std::filesystem::path& product) {
    StageLock stage;
    // Rank 0 decides; if it throws, it ends the others.
    std::byte done{0};
    if (c.world->is_root()) {
        // Renamed away by one that was killed before it put the successor there: it is complete.
        if (!std::filesystem::exists(lock_at) && std::filesystem::exists(lock_at.parent_path())) io::remove_temporaries(lock_at.parent_path(), lock_at.filename().string());
        stage.lock = std::make_unique<io::DirectoryLock>(lock_at);
        io::remove_temporaries(lock_at);
        done = std::byte{io::is_complete(product)};
        if (done != std::byte{0}) log_line(product.string() + " is complete already");
    }
    c.world->broadcast(std::span(&done, 1), 0);
    stage.is_complete = done != std::byte{0};
    return stage;
}

bool stop_was_asked(comm::Communicator& world) { return world.any(signal_was_seen()); }

bool stops_between_passes(comm::Communicator& world, bool passes_are_collective) {
    return passes_are_collective ? stop_was_asked(world) : signal_was_seen();
}

std::string code_version() { return ATELIER_CODE_VERSION; }

std::shared_ptr<const pipeline::ReferenceInputs> prepare_references(const pipeline::Pipeline& model,
                                                                    const Context& c,
                                                                    const Prompt& prompt) {
    std::vector<io::Image> images;
    for (const auto& path : prompt.images) images.push_back(io::read_png(path));
    return model.prepare(images, c.config.integer("sampling.output_resolution"));
}

EncodedPair encode_pair(pipeline::Pipeline& model, const Context& c, const Prompt& prompt,
                        bool with_negative) {
    const auto references = prepare_references(model, c, prompt);
    const DeviceTurn turn(c.device());
    EncodedPair pair;
    pair.conditional = model.encode(prompt.text, references);
    if (with_negative)
        pair.unconditional = model.encode_negative(c.negative(prompt.task), references, pair.conditional);
    return pair;
}

PromptIndex::PromptIndex(const Context& c, const std::vector<std::string>& tasks) {
    for (const std::string& task : tasks) pools_.emplace(task, PromptPool(c.config.text("task." + task + ".train"), task, c.kind(task)));
}

const Prompt& PromptIndex::at(const std::string& task, const std::string& id,
                              const std::filesystem::path& shard) const {
    if (const auto known = prompts_.find({task, id}); known != prompts_.end()) return known->second;
    const auto pool = pools_.find(task);
    const auto found = pool == pools_.end() ? std::nullopt : pool->second.find(id);
    ATELIER_CHECK_INPUT(found, "{}: prompt {} is not in the prompt file of {}", shard.string(), id, task);
    return prompts_.emplace(std::pair(task, id), pool->second.at(*found)).first->second;
}

PromptPool training_prompts(const Context& c, const std::string& task) {
    const std::filesystem::path file = c.config.text("task." + task + ".train");
    PromptPool prompts(file, task, c.kind(task));
    if (!c.config.flag("curate.enabled")) return prompts;
    const auto directory = c.run.curation(task);
    ATELIER_CHECK_INPUT(std::filesystem::exists(directory / io::manifest_name),
                        "{} is not complete: run atelier-curate for task {} first", directory.string(), task);
    // What counts is the list; the groups that it was judged by may be many and are not read again.
    const std::string stated = io::read_facts(directory).value("prompts_file", ""),
                      found = io::digest_file(c.run.curated(task)).hash;
    ATELIER_CHECK_INPUT(found == stated, "{} does not match {}: hash {} expected, found {}", c.run.curated(task).string(),
                        (directory / io::manifest_name).string(), stated, found);
    const Choice choice = read_choice(c.run.curated(task));
    ATELIER_CHECK_INPUT(choice.pool_hash == io::digest_file(file).hash,
                        "{} was curated from another version of {}", c.run.curated(task).string(),
                        file.string());
    for (const std::uint64_t number : choice.kept)
        ATELIER_CHECK_INPUT(number < prompts.size(), "{} names prompt {} of {}",
                            c.run.curated(task).string(), number, prompts.size());
    ATELIER_CHECK_INPUT(!choice.kept.empty(), "curation kept no prompt of task {}: lower curate.range_min",
                        task);
    prompts.keep(choice.kept);
    return prompts;
}

}  // namespace atelier::stage
