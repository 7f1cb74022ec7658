#include "stage/memory_plan.hpp"

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>
#include <optional>
#include <set>
#include <tuple>

#include "io/image/png.hpp"
#include "model/processor/image_inputs.hpp"
#include "stage/evaluation_report.hpp"
#include "stage/evaluation_shards.hpp"
#include "stage/judge_ranks.hpp"
#include "stage/memory_entries.hpp"
#include "stage/picture_sizes.hpp"
#include "stage/reward_train_memory.hpp"
#include "stage/scorers.hpp"
#include "stage/student.hpp"

namespace atelier::stage {
namespace {

namespace fs = std::filesystem;

// Where no tokenizer is there: tokens of a prompt, of the template around it, and of these the system turn's
// (lib/model/processor/prompt.cpp).
constexpr std::int64_t usual_tokens = 256, template_tokens = 21, system_tokens = 13;

/// A model's sizes, from its config files alone.
struct ModelFiles {
    ModelFiles(const fs::path& model, Device device, ops::ProductPrecision precision, bool takes_adapter)
        : dit(dit::load_config(model / "transformer" / "config.json"), device, precision, takes_adapter),
          vlm(vlm::load_config(model / "text_encoder" / "config.json"), device, precision),
          vae(vae::load_config(model / "vae" / "config.json"), device),
          schedule(flow::read_schedule_config(model / "scheduler" / "scheduler_config.json")) {
        for (const char* name : {"processor", "tokenizer"})
            if (!tokenizer && fs::exists(model / name / "tokenizer.json")) tokenizer = model::Tokenizer::load(model / name);
    }
    dit::Dit dit;
    vlm::Vlm vlm;
    vae::Vae vae;
    flow::ScheduleConfig schedule;
    std::optional<model::Tokenizer> tokenizer;
};

/// A prompt's sizes.
struct PromptOutline {
    std::int64_t tokens = 0, system = 0;  ///< with the system turn, each picture counted as one; of the system turn
    std::vector<dit::Grid> references;
    std::vector<dit::Grid> targets;
};

/// A task's prompts: of those with equal pictures the longest.
class TaskOutline {
  public:
    void cover(const PromptOutline& p, std::int64_t negative_tokens) {
        std::int64_t slots = 0, patches = 0;
        for (const dit::Grid& grid : p.references) slots += grid.tokens() / 4 - 1, patches += grid.tokens();
        tokens_ = std::max({tokens_, p.tokens + slots, negative_tokens + slots});
        patches_ = std::max(patches_, patches);
        for (const dit::Grid& reference : p.references) uses_.insert({reference.height, reference.width, false});
        const EncodedPair pair{encoded(p, p.tokens - p.system), encoded(p, negative_tokens - p.system)};
        for (const dit::Grid& target : p.targets) {
            uses_.insert({target.height, target.width, true});
            groups_.cover({pair, target});
        }
    }
    void cover(const TaskOutline& other) {
        tokens_ = std::max(tokens_, other.tokens_);
        patches_ = std::max(patches_, other.patches_);
        uses_.insert(other.uses_.begin(), other.uses_.end());
        for (const GroupOutline& group : other.groups_.all()) groups_.cover(group);
    }
    std::vector<GroupOutline> groups() const { return groups_.all(); }
    std::int64_t tokens() const { return tokens_; }
    std::int64_t patches() const { return patches_; }
    /// Of the autoencoder: encoding, and decoding so many pictures at once (0: none).
    std::vector<vae::PictureUse> uses(std::int64_t at_once) const {
        std::vector<vae::PictureUse> all;
        for (const auto& [height, width, decoded] : uses_)
            if (at_once > 0 || !decoded)
                all.push_back({height * model::pixels_per_latent, width * model::pixels_per_latent, decoded ? at_once : 0});
        return all;
    }

  private:
    static pipeline::EncodedPrompt encoded(const PromptOutline& p, std::int64_t tokens) {
        pipeline::EncodedPrompt e;
        e.references = p.references;
        for (const dit::Grid& grid : p.references) {
            e.image_slot.insert(e.image_slot.end(), static_cast<std::size_t>(grid.tokens() / 4), 1);
            e.image_slot.push_back(0);  // pictures are apart
        }
        const auto others = tokens - 2 * static_cast<std::int64_t>(p.references.size());
        e.image_slot.insert(e.image_slot.end(), static_cast<std::size_t>(std::max<std::int64_t>(others, 1)), 0);
        e.tokens = static_cast<std::int64_t>(e.image_slot.size());
        return e;
    }
    std::int64_t tokens_ = 0, patches_ = 0;
    GroupOutlines groups_;
    std::set<std::tuple<std::int64_t, std::int64_t, bool>> uses_;
};

class Planner {
  public:
    Planner(const Context& c, const MemoryQuestion& q)
        : c_(c), q_(q), files_(c.model(), c.device(), c.product_precision(), c.placement().takes_adapter), zero_(static_cast<int>(c.config.integer("compute.zero"))) {
        if (c.lora().rank > 0) lora_ = std::make_unique<nn::LoraTable>(files_.dit.table(), c.lora());
        for (const std::string& task : c.config.tasks()) {
            training_[task] = outline_of(task, "train");
            heldout_[task] = outline_of(task, "heldout");
            all_training_.cover(training_[task]);
            all_heldout_.cover(heldout_[task]);
        }
    }

    MemoryPlan rollout(const std::string& task, int micro_batch) const {
        const auto s = spec(task, micro_batch);
        MemoryPlan plan = program_;
        const ModelOutline model = outline(training_.at(task), false, s.members);
        hold_model(plan, model, s.members);
        hold_rollout(plan, model, s, true, scoring());
        return plan;
    }

    MemoryPlan grpo(const std::string& task, int micro_batch, dit::Keep keep) const {
        MemoryPlan plan = program_;
        const ModelOutline model = outline(training_.at(task), true, 0);
        hold_model(plan, model, 0);
        GrpoMemory memory;
        memory.has_kl = c_.config.text("grpo.kl") != "none";
        if (memory.has_kl && !lora_) memory.base_weights = zero_ == 3 ? model.parameters : frozen_transformer();
        memory.trainer = trainer(c_.config.number("grpo.ema") > 0);
        memory.has_snapshots = has_snapshots();
        hold_grpo(plan, model, spec(task, micro_batch), keep, memory);
        return plan;
    }

    MemoryPlan dump(const std::string& task, int micro_batch) const {
        MemoryPlan plan = program_;
        const auto s = student(micro_batch);
        const ModelOutline model = outline(training_.at(task), false, s.members);
        hold_model(plan, model, s.members);
        const auto prompts = static_cast<std::size_t>(c_.config.integer("distill.prompts")), ranks = static_cast<std::size_t>(q_.ranks);
        const auto resident = static_cast<std::size_t>(c_.config.integer("distill.resident_groups"));
        const bool averages = c_.config.text("distill.start") == "average";
        hold_dump(plan, model, s, spec(task, 1).uses_guidance(), (prompts + ranks - 1) / ranks, resident,
                  averages ? nn::mean_bytes(nn::Partition(files_.dit.table(), 1)) : 0);
        return plan;
    }

    MemoryPlan distill_stage(int micro_batch, dit::Keep keep) const {
        MemoryPlan plan = program_;
        const ModelOutline model = outline(all_training_, true, 0);
        hold_model(plan, model, 0);
        hold_distill(plan, model, student(micro_batch), keep, trainer(false), has_snapshots());
        return plan;
    }

    MemoryPlan evaluate() const {
        MemoryPlan plan = program_;
        EvaluationMemory m;
        m.pictures = static_cast<std::size_t>(c_.config.integer("evaluate.samples"));
        m.micro_batch = c_.config.integer("rollout.micro_batch");
        m.shard_pictures = evaluation_shard_prompts * m.pictures;
        const ModelOutline model = outline(all_heldout_, false, static_cast<std::int64_t>(m.shard_pictures));
        m.guided = spec(c_.config.tasks().front(), 1).uses_guidance();
        m.candidates = (m.guided ? 2 : 1) + (c_.config.flag("pipeline.teachers") ? c_.config.tasks().size() + 1 : 0) +
                       (c_.config.flag("pipeline.mix") ? 1 : 0);
        m.scoring = scoring();
        m.rows.assign(c_.config.tasks().size(), sheet_rows);
        hold_model(plan, model, static_cast<std::int64_t>(m.shard_pictures));
        hold_evaluation(plan, model, m);
        return plan;
    }

    /// A rank that judges.
    MemoryPlan judge_rank() const {
        MemoryPlan plan = program_;
        if (judges_here() && c_.judge_device() != Device::cpu) plan.hold_device_libraries();
        plan.hold("the judge", judge_bytes());
        plan.hold("pictures to score", judge_picture_bytes(c_));
        return plan;
    }

    /// The stage that trains the judge. Reads the labels.
    MemoryPlan reward_train() const {
        const config::Config& config = c_.config;
        const judge::QuestionMaker model(config.text("reward_train.start"), c_.device(), c_.product_precision());
        const auto labels = judge::read_labels(config.list("reward_train.labels")), heldout = judge::read_labels(config.list("reward_train.heldout"));
        LabelTemplates templates(config.text("judge.templates"));
        MemoryPlan plan = program_;
        hold_reward_train(plan, c_, model, training_sizes(model, templates, labels), labels, heldout, q_.ranks);
        return plan;
    }

    std::string parameters() const {
        const auto count = [](const nn::ParameterTable& t) { return static_cast<double>(t.count()) / 1e6; };
        std::string text = fmt::format("transformer {:.1f} M parameters, text encoder {:.1f} M, autoencoder {:.1f} M", count(files_.dit.table()),
                                       count(files_.vlm.table()), count(files_.vae.table()));
        if (lora_)
            text += fmt::format("; trained: an adapter of {}, {:.2f} M ({:.2f} %)", lora_->text(), count(lora_->table()),
                                100 * count(lora_->table()) / count(files_.dit.table()));
        text += fmt::format("\n{} rank{}, compute.zero = {}, compute.device = {}, products in {}\n", q_.ranks, q_.ranks == 1 ? "" : "s", zero_,
                            c_.config.text("compute.device"), files_.dit.precision() == ops::ProductPrecision::bf16 ? "bf16" : "fp32");
        if (judges_here() && judge_bytes() == Bytes()) text += "the judge's own memory is not in these figures: it is yet to be trained, from a start that is not named\n";
        return text;
    }

  private:
    /// Of a rank that samples.
    ScoringMemory scoring() const {
        const bool elsewhere = c_.config.integer("reward.ranks") > 0;
        return {static_cast<std::size_t>(samples_in_work(c_.config, q_.ranks)), elsewhere ? Bytes() : judge_bytes(), elsewhere};
    }
    bool judges_here() const { return c_.config.text("reward.scorer") == "judge"; }
    /// Of the engine's own judge: the configured one, or the one that it is trained from; none: there is none, or it is unknown.
    Bytes judge_bytes() const {
        const std::string& directory = c_.config.text(c_.config.text("judge.directory").empty() ? "reward_train.start" : "judge.directory");
        if (!judges_here() || directory.empty()) return {};
        if (!judge_bytes_)
            judge_bytes_ = judge::native_judge_bytes(judge::QuestionMaker(directory, c_.judge_device(), c_.product_precision()),
                                                     native_judge_config(c_, directory, c_.judge_device()), judge_templates(c_.config),
                                                     static_cast<std::size_t>(c_.config.integer("reward.workers")), largest_picture_bytes(c_.config));
        return *judge_bytes_;
    }
    Bytes frozen_transformer() const { return nn::frozen_bytes(files_.dit.table(), files_.dit.device(), files_.dit.precision()); }
    bool has_snapshots() const { return c_.config.integer("checkpoint.every") > 0; }

    TrainerBytes trainer(bool averages) const {
        const bool has_master = !lora_ && c_.config.text("checkpoint.dtype") != "f32";
        return trainer_bytes(files_.dit.table(), lora_.get(), zero_, q_.ranks, averages, has_master, c_.device(),
                             c_.product_precision(), c_.keeps_state_on_host());
    }

    /// A task's prompts as its file has them, or as the question says.
    TaskOutline outline_of(const std::string& task, const char* which) const {
        const std::int64_t resolution = c_.config.integer("sampling.output_resolution");
        const fs::path file = c_.config.text("task." + task + "." + which);
        TaskOutline outline;
        const bool counts = q_.prompt_tokens == 0 && files_.tokenizer && fs::exists(file);
        const auto length = [&](const std::string& text, std::size_t pictures) {
            return static_cast<std::int64_t>(files_.tokenizer->encode(model::prompt_text(text, pictures)).size());
        };
        if (!counts) {
            PromptOutline p;
            const std::int64_t side = resolution / model::pixels_per_latent;
            if (c_.kind(task) == "edit") p.references.assign(static_cast<std::size_t>(q_.references), {side, side});
            p.tokens = template_tokens + (q_.prompt_tokens == 0 ? usual_tokens : q_.prompt_tokens) + 8 * static_cast<std::int64_t>(p.references.size());
            p.system = system_tokens;
            for (const model::PictureSize& size : configured_sizes(c_.config, task)) p.targets.push_back(target_grid(size));
            outline.cover(p, template_tokens + 1);
            return outline;
        }
        const model::ProcessorConfig processor;
        const std::int64_t system = model::build_prompt(*files_.tokenizer, processor, " ").drop_idx;
        const PromptPool prompts(file, task, c_.kind(task));
        for (std::size_t i = 0; i < prompts.size(); ++i) {
            const Prompt prompt = prompts.at(i);
            PromptOutline p;
            for (const fs::path& path : prompt.images) {
                const auto [width, height] = io::read_png_size(path);
                p.references.push_back(target_grid(model::reference_size({width, height}, resolution)));
            }
            p.tokens = length(prompt.text, prompt.images.size());
            p.system = system;
            for (const model::PictureSize& size : possible_sizes(c_, prompt)) p.targets.push_back(target_grid(size));
            outline.cover(p, length(c_.negative(task), prompt.images.size()));
        }
        return outline;
    }

    /// `decoded`: pictures at once.
    ModelOutline outline(const TaskOutline& prompts, bool trains, std::int64_t decoded) const {
        ModelOutline m;
        m.dit = &files_.dit;
        m.schedule = files_.schedule;
        m.groups = prompts.groups();
        m.frozen = pipeline::frozen_bytes(files_.vlm, files_.vae, c_.placement().text_encoder_on_host);
        const nn::ParameterTable& table = files_.dit.table();
        const Device device = files_.dit.device();
        if (trains && zero_ == 3) {
            const nn::Partition partition(table, q_.ranks);
            const auto self = comm::make_self();
            m.parameters = Workspace::measure([&](Arena& arena) { nn::ShardedWeights(partition, *self, Tensor(), arena, device, files_.dit.precision()); });
        } else if (trains && !lora_) {
            // On a device with the rounded copy that products take.
            m.parameters = Workspace::measure([&](Arena& arena) { nn::ParameterStore(table, arena, device); }) + nn::rounded_copy_bytes(table, device);
        } else {
            m.parameters = frozen_transformer();
        }
        if (lora_) m.parameters += Workspace::measure([&](Arena& arena) { nn::LoraStore(*lora_, arena, device); });
        m.text_encoder = Workspace::measure([&](Arena& arena) { vlm::Session(files_.vlm, prompts.tokens(), prompts.patches(), arena); });
        m.autoencoder = codec_bytes(prompts.uses(decoded));
        return m;
    }

    /// Asked for again with every micro-batch, and slow to answer.
    Bytes codec_bytes(const std::vector<vae::PictureUse>& uses) const {
        std::string key;
        for (const vae::PictureUse& use : uses) key += fmt::format("{}x{}x{} ", use.height, use.width, use.decoded);
        const auto found = codec_.find(key);
        return found != codec_.end() ? found->second : codec_[key] = vae::planned_bytes(files_.vae, uses);
    }

    rl::SamplingSpec spec(const std::string& policy, int micro_batch) const {
        Context c = c_;
        c.policy = policy;
        auto s = c.sampling(files_.schedule);
        s.micro_batch = micro_batch;
        return s;
    }

    distill::StudentSpec student(int micro_batch) const {
        auto s = student_spec(c_, files_.schedule);
        s.micro_batch = micro_batch;
        return s;
    }

    const Context& c_;
    const MemoryQuestion& q_;
    MemoryPlan program_;  ///< before anything was planned
    ModelFiles files_;
    int zero_;
    std::unique_ptr<nn::LoraTable> lora_;
    std::map<std::string, TaskOutline> training_, heldout_;
    TaskOutline all_training_, all_heldout_;
    mutable std::map<std::string, Bytes> codec_;
    mutable std::optional<Bytes> judge_bytes_;
};

using StagePlan = std::function<MemoryPlan(int micro_batch)>;
/// A stage's plan with one value of compute.recompute, or of a stage that doesn't train.
struct Column {
    std::string recompute;
    StagePlan plan;
};
constexpr int first_width = 9, other_width = 12;

double gib(std::size_t bytes) { return static_cast<double>(bytes) / (1 << 30); }

/// What a plan's figures are of: the device's memory where there is one.
std::size_t counted(const Bytes& bytes, Device device) { return device == Device::cpu ? bytes.host : bytes.device; }

/// Largest divisor of the group that fits; 0: none.
int largest_micro_batch(const StagePlan& plan, int members, Device where, std::size_t device) {
    for (int m = members; m >= 1; --m)
        if (members % m == 0 && counted(plan(m).total(), where) <= device) return m;
    return 0;
}

/// `members`: what micro-batches divide; 0: the stage has none.
std::string table(const std::string& title, const std::vector<Column>& columns, int members, int micro_batch, Device where, std::size_t device) {
    std::string text = fmt::format("\n{}{}\n", title, members > 0 ? fmt::format(", micro-batch {} of {}", micro_batch, members) : "");
    const auto line = [&](const std::string& what, const auto& cell) {
        text += fmt::format("  {:<32}", what);
        for (std::size_t i = 0; i < columns.size(); ++i) text += fmt::format(" {:>{}}", cell(i), i == 0 ? first_width : other_width);
        text += '\n';
    };
    const bool is_one = columns.size() == 1;
    line(is_one ? "" : "GiB with compute.recompute =", [&](std::size_t i) { return is_one ? std::string("GiB") : columns[i].recompute; });
    std::vector<MemoryPlan> plans;
    for (const Column& column : columns) plans.push_back(column.plan(micro_batch));
    const auto print = [&](const std::string& what, const auto& bytes_of) {
        line(what, [&](std::size_t i) { return fmt::format("{:.3f}", gib(bytes_of(plans[i]))); });
    };
    // Plans of one stage have the same entries.
    const auto row = [&](const std::string& what, const auto& bytes_of) {
        if (counted(bytes_of(plans[0]), where) > 0) print(what, [&](const MemoryPlan& plan) { return counted(bytes_of(plan), where); });
    };
    for (std::size_t i = 0; i < plans[0].held().size(); ++i) row(plans[0].held()[i].first, [i](const MemoryPlan& plan) { return plan.held().at(i).second; });
    for (std::size_t i = 0; i < plans[0].phases().size(); ++i) {
        const auto& [phase, entries] = plans[0].phases()[i];
        for (std::size_t j = 0; j < entries.size(); ++j)
            row(fmt::format("{}: {}", phase, entries[j].first), [i, j](const MemoryPlan& plan) { return plan.phases().at(i).second.at(j).second; });
    }
    row("at once", [](const MemoryPlan& plan) { return plan.total(); });
    if (where != Device::cpu) print("host memory beside it", [](const MemoryPlan& plan) { return plan.total().host; });
    if (device == 0) return text;
    line(fmt::format("{} {:.1f} GiB", members == 0 ? "fits in" : "largest micro-batch in", gib(device)), [&](std::size_t i) {
        if (members == 0) return std::string(counted(plans[i].total(), where) <= device ? "yes" : "no");
        const int m = largest_micro_batch(columns[i].plan, members, where, device);
        return m == 0 ? std::string("none fits") : fmt::format("{}", m);
    });
    return text;
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
    ATELIER_CHECK_USAGE(q.ranks >= 1 && q.prompt_tokens >= 0 && q.references >= 1, "ranks and references count from 1, prompt tokens from 0");
    const Planner planner(c, q);
    std::string text = planner.parameters();
    const auto one = [](StagePlan plan) { return std::vector<Column>{{"", std::move(plan)}}; };
    const auto by_recompute = [&](const std::function<MemoryPlan(int micro_batch, dit::Keep keep)>& plan) {
        std::vector<Column> columns;
        for (const char* value : {"none", "elementwise", "selective", "full"})
            columns.push_back({value, [plan, keep = c.keep(value)](int micro_batch) { return plan(micro_batch, keep); }});
        return columns;
    };
    if (c.config.flag("pipeline.judge"))
        text += table("reward-train", one([&](int) { return planner.reward_train(); }), 0, 1, c.device(), q.device_memory);
    const int members = static_cast<int>(c.config.integer("rollout.group_size")), micro_batch = static_cast<int>(c.config.integer("rollout.micro_batch"));
    // Members and steps of a trajectory run together once they are there.
    const int states = static_cast<int>(c.config.integer("distill.group_size") * c.config.integer("sampling.steps")), together = std::gcd(states, micro_batch);
    for (const std::string& task : c.config.tasks()) {
        text += table("curate, rollout " + task, one([&](int m) { return planner.rollout(task, m); }), members, micro_batch, c.device(), q.device_memory);
        text += table("grpo " + task, by_recompute([&](int m, dit::Keep keep) { return planner.grpo(task, m, keep); }), members, micro_batch, c.device(), q.device_memory);
        text += table("teacher-dump " + task, one([&](int m) { return planner.dump(task, m); }), states, together, c.device(), q.device_memory);
    }
    text += table("distill", by_recompute([&](int m, dit::Keep keep) { return planner.distill_stage(m, keep); }), states, together, c.device(), q.device_memory);
    text += table("evaluate", one([&](int) { return planner.evaluate(); }), 0, 1, c.device(), q.device_memory);
    if (c.config.integer("reward.ranks") > 0)
        text += table("a judge of curate, rollout, evaluate", one([&](int) { return planner.judge_rank(); }), 0, 1,
                      c.config.text("reward.scorer") == "judge" ? c.judge_device() : Device::cpu, q.device_memory);
    return text;
}

}  // namespace atelier::stage
