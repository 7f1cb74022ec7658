#include "stage/memory_plan.hpp"

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>
#include <tuple>

#include "core/memory.hpp"
#include "core/parallel.hpp"
#include "distill/student_group.hpp"
#include "pipeline/generate.hpp"
#include "stage/group_rollout.hpp"
#include "stage/judge_ranks.hpp"
#include "stage/stage_memory.hpp"
#include "stage/student.hpp"
#include "stage/trainer.hpp"

namespace atelier::stage {
namespace {

// Tokens of the chat template around a prompt, system turn included (lib/model/processor/prompt.cpp), for planning without a tokenizer.
constexpr std::int64_t template_tokens = 32;

/// A model's sizes, from its config files alone.
struct Outline {
    explicit Outline(const std::filesystem::path& model)
        : dit(dit::load_config(model / "transformer" / "config.json")),
          vlm(vlm::load_config(model / "text_encoder" / "config.json")),
          vae(vae::load_config(model / "vae" / "config.json")),
          schedule(flow::read_schedule_config(model / "scheduler" / "scheduler_config.json")) {}
    std::size_t frozen_bytes() const { return static_cast<std::size_t>(vlm.table().flat_size() + vae.table().flat_size()) * sizeof(float); }
    dit::Dit dit;
    vlm::Vlm vlm;
    vae::Vae vae;
    flow::ScheduleConfig schedule;
    nn::ParameterStore no_weights;  ///< for what is only measured
};

/// Bytes of a rank by kind.
struct Bytes {
    std::size_t parameters = 0, frozen = 0, gradients = 0, optimizer = 0, activations = 0, prefix_cache = 0, workspace = 0, pictures = 0,
                publishing = 0, program = 0;
    std::size_t total() const {
        // What publishing takes is taken when activations and pictures have been given back.
        return parameters + frozen + gradients + optimizer + workspace + program + std::max(activations + prefix_cache + pictures, publishing);
    }
};

class Planner {
  public:
    Planner(const Context& c, const MemoryQuestion& q)
        : c_(c), q_(q), program_(MemoryPlan().total()), model_(c.model()), zero_(static_cast<int>(c.config.integer("compute.zero"))) {
        if (c.lora().rank > 0) lora_ = std::make_unique<nn::LoraTable>(model_.dit.table(), c.lora());
        self_ = comm::make_self();
    }

    pipeline::EncodedPrompt prompt(const std::string& task, bool is_negative) const {
        pipeline::EncodedPrompt p;
        const std::int64_t side = c_.config.integer("sampling.output_resolution") / model::pixels_per_latent;
        const std::int64_t pictures = c_.kind(task) == "edit" ? q_.references : 0;
        for (std::int64_t i = 0; i < pictures; ++i) {
            p.references.push_back({side, side});
            p.image_slot.insert(p.image_slot.end(), static_cast<std::size_t>(side * side / 4), 1);
            p.image_slot.push_back(0);  // pictures are apart
        }
        p.image_slot.insert(p.image_slot.end(), static_cast<std::size_t>(is_negative ? template_tokens : q_.prompt_tokens + template_tokens), 0);
        p.tokens = static_cast<std::int64_t>(p.image_slot.size());
        return p;
    }

    /// What every stage holds of the model and its frozen parts.
    Bytes base(const std::string& task, bool trains, std::int64_t decoded) const {
        Bytes b;
        b.program = program_;
        b.frozen = model_.frozen_bytes();
        b.parameters = static_cast<std::size_t>(model_.dit.table().flat_size()) * sizeof(float);
        if (trains && zero_ == 3) {
            const nn::Partition partition(model_.dit.table(), q_.ranks);
            b.parameters = Workspace::measure([&](Arena& arena) { nn::ShardedWeights(partition, *self_, {}, arena); });
        }
        if (lora_) b.parameters += Workspace::measure([&](Arena& arena) { nn::LoraStore(*lora_, arena); });
        const auto outline = prompt(task, false);
        std::int64_t patches = 0;
        for (const dit::Grid& grid : outline.references) patches += grid.tokens();
        b.workspace = Workspace::measure([&](Arena& arena) { vlm::Session(model_.vlm, outline.tokens + template_tokens, patches, arena); });
        const std::int64_t side = c_.config.integer("sampling.output_resolution");
        if (!outline.references.empty()) b.workspace += codec_bytes(side, side, false);
        const std::int64_t height = c_.config.integer("sampling.height"), width = c_.config.integer("sampling.width");
        if (decoded > 0) b.workspace += codec_bytes(height, width, true);
        b.pictures = static_cast<std::size_t>(decoded * height * width) * 4 * sizeof(float);
        return b;
    }

    /// Asked for again with every micro-batch, and slow to answer.
    std::size_t codec_bytes(std::int64_t height, std::int64_t width, bool decoding) const {
        const std::tuple key(height, width, decoding);
        const auto found = codec_.find(key);
        return found != codec_.end() ? found->second : codec_[key] = vae::planned_bytes(model_.vae, height, width, decoding);
    }

    void add_trainer(Bytes& b, bool averages, std::size_t& publishing) const {
        const bool has_master = !lora_ && c_.config.text("checkpoint.dtype") != "f32";
        const TrainerBytes t = trainer_bytes(model_.dit.table(), lora_.get(), zero_, q_.ranks, averages, has_master);
        b.gradients += t.gradients;
        b.optimizer += t.optimizer;
        publishing = t.publishing;
        if (c_.config.integer("checkpoint.every") > 0) b.optimizer += t.publishing;
    }

    /// Keys and values of the prefix in all layers, with their gradients where they are trained.
    std::size_t prefix_cache(const pipeline::EncodedPrompt& p, bool trains) const {
        const auto& d = model_.dit.config();
        std::int64_t tokens = p.tokens;
        for (const dit::Grid& grid : p.references) tokens += grid.tokens() - grid.tokens() / 4;
        return static_cast<std::size_t>(d.layers * tokens * 2 * d.width()) * sizeof(float) * (trains ? 2 : 1);
    }

    rl::SamplingSpec spec(const std::string& policy, int micro_batch) const {
        Context c = c_;
        c.policy = policy;
        const std::int64_t tokens = c.config.integer("sampling.height") * c.config.integer("sampling.width") /
                                    (model::pixels_per_latent * model::pixels_per_latent);
        auto s = c.sampling(flow::make_schedule(model_.schedule, static_cast<int>(c.config.integer("sampling.steps")), tokens));
        s.micro_batch = micro_batch;
        return s;
    }

    /// Activations and prefix cache of a group.
    void add_group(Bytes& b, const std::string& task, const rl::SamplingSpec& s, dit::Keep keep) const {
        const auto conditional = prompt(task, false), unconditional = prompt(task, true);
        const std::size_t all = Workspace::measure([&](Arena& arena) {
            rl::GroupPolicy(model_.dit, model_.no_weights, conditional, s.uses_guidance() ? &unconditional : nullptr, s, keep, arena);
        });
        const bool trains = keep != dit::Keep::nothing;
        std::size_t cache = prefix_cache(conditional, trains);
        if (s.uses_guidance()) cache += prefix_cache(unconditional, trains && s.guidance_train == flow::GuidanceTrain::guided);
        b.prefix_cache = cache;
        b.activations = all - cache;
    }

    Bytes rollout(const std::string& task, int micro_batch, bool) const {
        const auto s = spec(task, micro_batch);
        Bytes b = base(task, false, s.members);
        add_group(b, task, s, dit::Keep::nothing);
        const auto members = static_cast<std::size_t>(s.members);
        const auto pending = static_cast<std::size_t>(std::max<std::int64_t>(1, samples_in_work(c_.config, q_.ranks) / s.members));
        const std::size_t group = members * sample_bytes(s.target, model_.dit.config().in_channels, static_cast<std::int64_t>(s.trained_steps.size()), 0);
        const std::size_t sources = c_.kind(task) == "edit" && c_.config.integer("reward.ranks") > 0 ? 2 : 1;  // sent with each picture
        b.pictures += (pending + 2) * group + pending * members * sources * picture_bytes(s.target);
        return b;
    }

    /// A rank that judges, but for the caches of the answers that it writes: those depend on the judge's tokenizer.
    Bytes judge_rank() const {
        Bytes b;
        b.program = program_;
        b.pictures = judge_picture_bytes(c_);
        if (const std::string& directory = c_.config.text("judge.directory"); c_.config.text("reward.scorer") == "judge" && !directory.empty())
            b.parameters = static_cast<std::size_t>(vlm::Vlm(vlm::load_config(std::filesystem::path(directory) / "config.json")).table().flat_size()) * sizeof(float);
        return b;
    }

    Bytes grpo(const std::string& task, int micro_batch, bool recomputes) const {
        const auto s = spec(task, micro_batch);
        Bytes b = base(task, true, 0);
        add_trainer(b, c_.config.number("grpo.ema") > 0, b.publishing);
        add_group(b, task, s, recomputes ? dit::Keep::inputs : dit::Keep::activations);
        if (c_.config.text("grpo.kl") != "none" && c_.config.number("grpo.kl_beta") > 0) {
            Bytes reference;
            add_group(reference, task, s, dit::Keep::nothing);
            b.activations += reference.activations;
            b.prefix_cache += reference.prefix_cache;
            if (!lora_) b.parameters += base(task, true, 0).parameters;
        }
        b.pictures += static_cast<std::size_t>(s.members) *
                      sample_bytes(s.target, model_.dit.config().in_channels, static_cast<std::int64_t>(s.trained_steps.size()), 0);
        return b;
    }

    distill::StudentSpec student(int micro_batch) const {
        const auto sampling = spec(c_.config.tasks().front(), 1);
        distill::StudentSpec s;
        s.target = sampling.target;
        s.schedule = sampling.schedule;
        s.sampler = flow::parse_sampler(c_.config.text("distill.sampler"));
        s.members = static_cast<int>(c_.config.integer("distill.group_size"));
        s.micro_batch = micro_batch;
        return s;
    }

    void add_student(Bytes& b, const std::string& task, const distill::StudentSpec& s, bool guided, dit::Keep keep) const {
        const auto conditional = prompt(task, false), unconditional = prompt(task, true);
        const std::size_t all = Workspace::measure([&](Arena& arena) {
            distill::StudentGroup(model_.dit, model_.no_weights, conditional, guided ? &unconditional : nullptr, s, keep, arena);
        });
        b.prefix_cache = prefix_cache(conditional, keep != dit::Keep::nothing) + (guided ? prefix_cache(unconditional, false) : 0);
        b.activations = all - b.prefix_cache;
    }

    Bytes dump(const std::string& task, int micro_batch, bool) const {
        const auto s = student(micro_batch);
        Bytes b = base(task, false, s.members);
        add_student(b, task, s, spec(task, 1).uses_guidance(), dit::Keep::nothing);
        const auto members = static_cast<std::size_t>(s.members);
        const std::int64_t channels = model_.dit.config().in_channels, steps = s.schedule.steps();
        const auto prompts = static_cast<std::size_t>(c_.config.integer("distill.prompts")), ranks = static_cast<std::size_t>(q_.ranks);
        const std::size_t resident = std::min(static_cast<std::size_t>(c_.config.integer("distill.resident_groups")), (prompts + ranks - 1) / ranks);
        b.pictures += resident * members * (sample_bytes(s.target, channels, steps, 0) - picture_bytes(s.target)) +
                      2 * members * sample_bytes(s.target, channels, steps, steps);
        return b;
    }

    Bytes distill_stage(const std::string& task, int micro_batch, bool recomputes) const {
        const auto s = student(micro_batch);
        Bytes b = base(task, true, 0);
        add_trainer(b, false, b.publishing);
        add_student(b, task, s, false, recomputes ? dit::Keep::inputs : dit::Keep::activations);
        b.pictures += static_cast<std::size_t>(s.members) *
                      sample_bytes(s.target, model_.dit.config().in_channels, s.schedule.steps(), s.schedule.steps());
        return b;
    }

    std::string parameters() const {
        const auto count = [](const nn::ParameterTable& t) { return static_cast<double>(t.count()) / 1e6; };
        std::string text = fmt::format("transformer {:.1f} M parameters, text encoder {:.1f} M, autoencoder {:.1f} M", count(model_.dit.table()),
                                       count(model_.vlm.table()), count(model_.vae.table()));
        if (lora_)
            text += fmt::format("; trained: an adapter of rank {} for {} matrices, {:.2f} M ({:.2f} %)", lora_->rank(), lora_->adapted().size(),
                                count(lora_->table()), 100 * count(lora_->table()) / count(model_.dit.table()));
        return text + fmt::format("\n{} rank{}, compute.zero = {}, fp32\n", q_.ranks, q_.ranks == 1 ? "" : "s", zero_);
    }

    const Outline& model() const { return model_; }

  private:
    const Context& c_;
    const MemoryQuestion& q_;
    std::size_t program_;  ///< before anything was planned
    Outline model_;
    int zero_;
    std::unique_ptr<nn::LoraTable> lora_;
    std::unique_ptr<comm::Communicator> self_;
    mutable std::map<std::tuple<std::int64_t, std::int64_t, bool>, std::size_t> codec_;
};

using StageBytes = std::function<Bytes(int micro_batch, bool recomputes)>;

double gib(std::size_t bytes) { return static_cast<double>(bytes) / (1 << 30); }

/// Largest divisor of the group that fits; 0: none.
int largest_micro_batch(const StageBytes& bytes, int members, bool recomputes, std::size_t device) {
    for (int m = members; m >= 1; --m)
        if (members % m == 0 && bytes(m, recomputes).total() <= device) return m;
    return 0;
}

std::string table(const std::string& title, const StageBytes& bytes, int members, int micro_batch, bool trains, std::size_t device) {
    const Bytes kept = bytes(micro_batch, false), again = trains ? bytes(micro_batch, true) : kept;
    std::string text = fmt::format("\n{}, micro-batch {} of {}\n{:<34} {:>9}{}\n", title, micro_batch, members, "", "GiB",
                                   trains ? "  with recompute" : "");
    const auto row = [&](const char* what, std::size_t a, std::size_t b) {
        if (a == 0 && b == 0) return;
        text += fmt::format("  {:<32} {:>9.3f}", what, gib(a));
        if (trains) text += fmt::format(" {:>15.3f}", gib(b));
        text += '\n';
    };
    row("parameters", kept.parameters, again.parameters);
    row("text encoder, autoencoder", kept.frozen, again.frozen);
    row("gradients", kept.gradients, again.gradients);
    row("optimizer", kept.optimizer, again.optimizer);
    row("activations", kept.activations, again.activations);
    row("prefix cache", kept.prefix_cache, again.prefix_cache);
    row("encoders' workspace", kept.workspace, again.workspace);
    row("pictures and states", kept.pictures, again.pictures);
    row("publishing (nothing else then)", kept.publishing, again.publishing);
    row("program", kept.program, again.program);
    row("at once", kept.total(), again.total());
    if (device == 0) return text;
    const auto verdict = [&](bool recomputes) {
        const int m = largest_micro_batch(bytes, members, recomputes, device);
        return m == 0 ? std::string("none fits") : fmt::format("{}", m);
    };
    text += fmt::format("  {:<32} {:>9}", fmt::format("largest micro-batch in {:.1f} GiB", gib(device)), verdict(false));
    if (trains) text += fmt::format(" {:>15}", verdict(true));
    return text + '\n';
}

}  // namespace

std::size_t parse_bytes(const std::string& text) {
    static const std::pair<const char*, double> units[] = {{"GiB", 0x1p30}, {"MiB", 0x1p20}, {"TiB", 0x1p40}, {"GB", 1e9}, {"MB", 1e6}, {"TB", 1e12}};
    for (const auto& [unit, factor] : units)
        if (text.ends_with(unit)) {
            std::size_t read = 0;
            double number = 0;
            try {
                number = std::stod(text, &read);
            } catch (const std::exception&) {
                break;
            }
            const std::string rest = text.substr(read, text.size() - read - std::string(unit).size());
            if (number > 0 && rest.find_first_not_of(' ') == std::string::npos) return static_cast<std::size_t>(number * factor);
        }
    ATELIER_FAIL(ErrorKind::usage, "\"{}\" is no amount of memory: a number and MB, MiB, GB, GiB, TB or TiB was expected", text);
}

std::string describe_memory(const Context& c, const MemoryQuestion& q) {
    ATELIER_CHECK_USAGE(q.ranks >= 1 && q.prompt_tokens >= 1 && q.references >= 1, "ranks, prompt tokens and references count from 1");
    const Planner planner(c, q);
    std::string text = planner.parameters();
    const int members = static_cast<int>(c.config.integer("rollout.group_size")), micro_batch = static_cast<int>(c.config.integer("rollout.micro_batch"));
    const int drawn = static_cast<int>(c.config.integer("distill.group_size")), dumped = std::gcd(drawn, micro_batch);
    for (const std::string& task : c.config.tasks()) {
        const auto add = [&](const std::string& stage, auto method, int of, int at, bool trains) {
            text += table(stage + " " + task, [&, method](int m, bool recomputes) { return (planner.*method)(task, m, recomputes); }, of, at, trains,
                          q.device_memory);
        };
        add("curate, rollout, evaluate", &Planner::rollout, members, micro_batch, false);
        add("grpo", &Planner::grpo, members, micro_batch, true);
        add("teacher-dump", &Planner::dump, drawn, dumped, false);
        add("distill", &Planner::distill_stage, drawn, dumped, true);
    }
    if (c.config.integer("reward.ranks") > 0)
        text += table("a judge of curate, rollout, evaluate, without its answers' caches", [&](int, bool) { return planner.judge_rank(); }, 1, 1, false,
                      q.device_memory);
    return text;
}

}  // namespace atelier::stage
