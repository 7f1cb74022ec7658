#include "judge/judge_trainer.hpp"

#include <algorithm>
#include <cmath>

#include "core/error.hpp"
#include "io/hdf5.hpp"
#include "nn/checkpoint_weights.hpp"

namespace atelier::judge {
namespace {

enum class ModelPart { vision, merger, text };

ModelPart part_of(const std::string& name) {
    if (!name.starts_with("model.visual.")) return ModelPart::text;
    return name.find("merger") != std::string::npos ? ModelPart::merger : ModelPart::vision;
}

}  // namespace

void JudgeTrainer::Sizes::cover(const TrainingSample& s) {
    tokens = std::max(tokens, static_cast<std::int64_t>(s.question.ids.size()));
    patches = std::max(patches, s.question.vision.patches);
    rows = std::max(rows, static_cast<std::int64_t>(s.rows.size()) + 1);
}

JudgeTrainer::Buffers::Buffers(const vlm::Vlm& vlm, const nn::LoraTable* adapter, const Sizes& sizes, Arena& arena)
    : adapter_gradients(adapter != nullptr ? std::optional<nn::LoraStore>(std::in_place, *adapter, arena) : std::nullopt),
      gradients(adapter_gradients ? nn::ParameterStore(vlm.table(), *adapter_gradients) : nn::ParameterStore(vlm.table(), arena)),
      pass(vlm, sizes.tokens, sizes.patches, sizes.rows, arena),
      logits(arena.take_f32({sizes.rows, vlm.config().text.vocabulary})) {}

std::size_t JudgeTrainer::trained_numbers(const vlm::Vlm& vlm, const JudgeTrainerConfig& config) {
    return static_cast<std::size_t>(config.lora.rank > 0 ? nn::LoraTable(vlm.table(), config.lora).table().flat_size() : vlm.table().flat_size());
}

std::size_t JudgeTrainer::planned_bytes(const vlm::Vlm& vlm, const JudgeTrainerConfig& config, const Sizes& sizes) {
    std::optional<nn::LoraTable> adapter;
    if (config.lora.rank > 0) adapter.emplace(vlm.table(), config.lora);
    const std::size_t buffers = Workspace::measure([&](Arena& arena) {
                                    if (adapter) nn::LoraStore(*adapter, arena);
                                    Buffers(vlm, adapter ? &*adapter : nullptr, sizes, arena);
                                }).host;
    return buffers + 2 * trained_numbers(vlm, config) * sizeof(float);
}

JudgeTrainer::JudgeTrainer(const JudgeModel& model, const JudgeTrainerConfig& config,
                           const Sizes& sizes)
    : model_(model),
      config_(config),
      arena_(Arena::measuring("plan")) {
    optim::check_config(config.adamw);
    const vlm::Vlm& vlm = model.vlm();
    if (config.lora.rank > 0) {
        adapter_.emplace(vlm.table(), config.lora);
        for (const int row : {vlm.embedding, vlm.position_embedding})
            ATELIER_CHECK_USAGE(!adapter_->store().adapts(row), "{} is no product: it takes no adapter", vlm.table().spec(row).name);
        nn::initialise(adapter_->store(), config.seed);
    }
    const nn::ParameterTable& table = adapter_ ? adapter_->table().table() : vlm.table();
    weights_ = model.weights().with_lora(adapter());
    const auto build = [&](Arena& arena) { buffers_.emplace(vlm, adapter_ ? &adapter_->table() : nullptr, sizes, arena); };
    arena_ = Arena("judge's training", Workspace::measure(build));
    build(arena_);
    for (int i = 0; i < table.size(); ++i) {
        const ModelPart part = part_of(table.spec(i).name);
        const bool trained = part == ModelPart::vision   ? config.train_vision
                             : part == ModelPart::merger ? config.train_mergers
                                                    : config.train_text;
        const std::int64_t end = i + 1 < table.size() ? table.offset(i + 1) : table.flat_size();
        ranges_.push_back({table.offset(i), end, trained && table.spec(i).decay});
        trained_.push_back(trained ? 1 : 0);
    }
    ATELIER_CHECK_USAGE(std::count(trained_.begin(), trained_.end(), 1) > 0,
                        "nothing is trained: all parts that reward_train.vision, .mergers, .text and .lora_targets leave are frozen");
    norm_.emplace(table.flat_size());
    m_.resize(static_cast<std::size_t>(table.flat_size()));
    v_.resize(m_.size());
}

std::span<float> JudgeTrainer::trained_values() const {
    return {adapter_ ? adapter_->store().values().data() : model_.weights().data(), m_.size()};
}

std::span<float> JudgeTrainer::trained_gradients() const {
    return {adapter_ ? buffers_->adapter_gradients->values().data() : buffers_->gradients.data(), m_.size()};
}

void JudgeTrainer::zero_gradients() {
    const auto gradients = trained_gradients();
    std::fill(gradients.begin(), gradients.end(), 0.0f);
}

void JudgeTrainer::merge() const {
    if (adapter_) nn::merge_lora(adapter_->store(), model_.weights());
}

JudgeLoss JudgeTrainer::run(
    const TrainingSample& s, double weight, double language_weight,
    const std::function<double(std::span<float>, double, double&)>& on_score) {
    const auto n = static_cast<std::int64_t>(s.rows.size()), vocabulary = buffers_->logits.size(1);
    buffers_->pass.forward(weights_, s.question.ids, s.question.pixel_values(),
                   s.question.vision.image_grid_thw);
    std::vector<std::int64_t> rows = s.rows;
    if (s.score_row >= 0) rows.push_back(s.score_row);
    const auto answer = static_cast<std::int64_t>(rows.size());
    const Tensor logits = buffers_->logits.slice(0, answer);
    buffers_->pass.logits(weights_, rows, logits);
    JudgeLoss loss;
    double mass = 0;
    if (s.score_row >= 0)
        loss.score = on_score({logits.f32() + n * vocabulary, static_cast<std::size_t>(vocabulary)},
                              weight * language_weight / static_cast<double>(answer), mass);
    loss.language = vlm::cross_entropy(s.targets, answer, logits.slice(0, n)) +
                    mass / static_cast<double>(answer);
    const auto scale = static_cast<float>(weight * language_weight);
    std::for_each_n(logits.f32(), n * vocabulary, [=](float& g) { g *= scale; });
    buffers_->pass.backward(weights_, buffers_->gradients, logits, {});
    return loss;
}

JudgeLoss JudgeTrainer::add_sample(const TrainingSample& s, double weight) {
    return run(s, weight, config_.language_weight,
               [&](std::span<float> logits, double mass_weight, double& mass) {
                   const ScoreLoss loss =
                       score_loss(s.scores, s.candidates, weight, mass_weight, logits);
                   mass = loss.mass;
                   return loss.loss;
               });
}

double JudgeTrainer::forward_score(const TrainingSample& s) {
    buffers_->pass.forward(weights_, s.question.ids, s.question.pixel_values(),
                   s.question.vision.image_grid_thw);
    const std::int64_t row = s.score_row;
    const Tensor logits = buffers_->logits.slice(0, 1);
    buffers_->pass.logits(weights_, std::span(&row, 1), logits);
    return expected_score({logits.f32(), static_cast<std::size_t>(logits.size(1))}, s.candidates);
}

JudgeLoss JudgeTrainer::add_pair(const TrainingSample& better, const TrainingSample& worse,
                                 double weight) {
    const double ahead = forward_score(better) - forward_score(worse);
    // d/dR of -ln sigma(R_better - R_worse).
    const double slope = -1 / (1 + std::exp(ahead));
    JudgeLoss total;
    total.score = std::log1p(std::exp(-ahead));
    for (const auto& [sample, sign] : {std::pair(&better, 1.0), std::pair(&worse, -1.0)}) {
        const JudgeLoss one =
            run(*sample, weight / 2, config_.language_weight,
                [&, s = sample, f = sign](std::span<float> logits, double mass_weight, double& mass) {
                    std::vector<float> copy(logits.begin(), logits.end());
                    mass = score_loss({}, s->candidates, 0, mass_weight, logits).mass;
                    score_gradient(s->candidates, weight * slope * f, copy);
                    for (std::size_t i = 0; i < copy.size(); ++i) logits[i] += copy[i];
                    return 0.0;
                });
        total.language += one.language / 2;
    }
    return total;
}

double JudgeTrainer::step(double rate, const std::function<void(std::span<float>)>& sum) {
    const std::span<float> gradient = trained_gradients();
    for (std::size_t i = 0; i < ranges_.size(); ++i)
        if (trained_[i] == 0)
            std::fill(gradient.begin() + ranges_[i].begin, gradient.begin() + ranges_[i].end, 0.0f);
    sum(gradient);
    const double norm = std::sqrt(norm_->sum_of_squares(gradient));
    ATELIER_CHECK_KIND(ErrorKind::numeric, std::isfinite(norm),
                       "the gradient of update {} is not finite (number {} of the flat vector)",
                       update_ + 1, optim::first_non_finite(gradient));
    ++update_;
    optim::adamw_step(config_.adamw, rate, update_,
                      optim::clip_scale(norm, config_.max_grad_norm), ranges_, gradient,
                      trained_values(), m_, v_);
    return norm;
}

void JudgeTrainer::save_state(const std::filesystem::path& path) const {
    auto file = io::hdf5::File::create(path);
    file.set_attribute("/", "schema", std::string("atelier.judge_training"));
    file.set_attribute("/", "update", update_);
    const Shape shape{static_cast<std::int64_t>(m_.size())};
    file.write("/m", Tensor::of(m_.data(), shape));
    file.write("/v", Tensor::of(v_.data(), shape));
    file.close();
}

void JudgeTrainer::load_state(const std::filesystem::path& path, const std::filesystem::path& adapter) {
    const auto file = io::hdf5::File::open(path);
    const auto size = static_cast<std::int64_t>(m_.size());
    m_ = file.read<float>("/m", {size});
    v_ = file.read<float>("/v", {size});
    if (adapter_) transfer(nn::load_lora(adapter, model_.vlm().table()).store().values().flat(), adapter_->store().values().flat());
    update_ = file.integer_attribute("/", "update");
}

void save_judge(const JudgeModel& model, const std::filesystem::path& source,
                const std::filesystem::path& directory) {
    for (const auto& entry : std::filesystem::directory_iterator(source)) {
        const std::string name = entry.path().filename().string();
        const bool kept = name.ends_with(".json") || name.ends_with(".jinja");
        if (kept && name != "manifest.json" && name != "report.json" &&
            name.find(".safetensors") == std::string::npos)
            std::filesystem::copy_file(entry.path(), directory / name);
    }
    // In files of 5 GB, as transformers writes them.
    const nn::StorageFormat format{
        std::vector<DType>(static_cast<std::size_t>(model.weights().table().size()), DType::f32),
        std::uint64_t{5'000'000'000}, {{"format", "pt"}}};
    nn::save_weights(model.weights(), directory, "model", format);
}

}  // namespace atelier::judge
