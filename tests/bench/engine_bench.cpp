// The engine's half of tests/bench/compare.py: prepares one piece of work, says "ready", then for every line "run" on its input does
// the work once and prints the seconds that it took, for "write" puts what came out into a safetensors file.
#include <boost/program_options.hpp>
#include <chrono>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <numeric>

#include "core/parallel.hpp"
#include "flow/noise.hpp"
#include "io/image/png.hpp"
#include "io/safetensors.hpp"
#include "ops/cpu/amx_block.hpp"
#include "optim/adamw.hpp"
#include "optim/gradient_norm.hpp"
#include "pipeline/generate.hpp"
#include "rl/group_policy.hpp"

namespace {

namespace fs = std::filesystem;
using namespace atelier;

struct Options {
    std::string work, model, prompt, negative, inputs, outputs;
    std::vector<std::string> images;
    int threads = 1, group = 8, steps = 10;
    double guidance = 1;
    std::string dtype = "f32";
    ops::ProductPrecision precision() const { return dtype == "bf16" ? ops::ProductPrecision::bf16 : ops::ProductPrecision::fp32; }
    pipeline::Placement placement() const {
        pipeline::Placement p;
        p.precision = precision();
        p.weights_change = true;
        return p;
    }
};

/// Work that can be done again and again.
class Work {
  public:
    virtual ~Work() = default;
    virtual void run() = 0;
    virtual std::vector<io::TensorToWrite> outputs() const = 0;
};

io::TensorToWrite column(const std::string& name, const std::vector<float>& values) {
    return {name, Tensor::of(values.data(), {static_cast<std::int64_t>(values.size())}), DType::f32};
}

/// Weights with their gradients and AdamW's state.
struct Training {
    explicit Training(const dit::Dit& dit)
        : ranges{{0, dit.table().flat_size(), true}},
          gradients_memory(static_cast<std::size_t>(dit.table().flat_size())),
          m(gradients_memory.size()),
          v(gradients_memory.size()),
          gradients(dit.table(), Tensor::of(gradients_memory.data(), {dit.table().flat_size()})),
          norm(dit.table().flat_size()) {}
    void clear() { std::fill(gradients_memory.begin(), gradients_memory.end(), 0.0f); }
    double step(const nn::ParameterStore& weights) {
        const double length = std::sqrt(norm.sum_of_squares(gradients_memory));
        optim::adamw_step({}, 1e-6, ++updates, optim::clip_scale(length, 1.0), ranges, gradients_memory,
                          {weights.data(), gradients_memory.size()}, m, v);
        return length;
    }
    std::vector<optim::ParameterRange> ranges;
    std::vector<float> gradients_memory, m, v;
    nn::ParameterStore gradients;
    optim::GradientNorm norm;
    std::int64_t updates = 0;
};

/// Prompts in one pass: more gain nothing on the miniature.
constexpr std::int64_t prompts_together = 16;

/// The transformer alone: P prompts of T tokens, G targets of each. inputs: states [P, T, width], latents and velocity
/// [P, G, L, channels], time [P, G], size [2]: latent tokens high and wide. Loss: mean squared error to `velocity`.
class Transformer final : public Work {
  public:
    enum class Depth { forward, backward, step };
    Transformer(const Options& o, Depth depth)
        : depth_(depth), inputs_(io::Safetensors::open(o.inputs)), dit_(dit::load_config(fs::path(o.model) / "transformer/config.json"), Device::cpu, o.precision()) {
        const auto& states = inputs_.at("states").shape;
        const auto& latents = inputs_.at("latents").shape;
        prompts_ = states[0], group_ = latents[1];
        states_ = inputs_.floats("states"), latents_ = inputs_.floats("latents"), goal_ = inputs_.floats("velocity"), time_ = inputs_.floats("time");
        const auto size = inputs_.integers("size");
        const dit::Grid target{size[0], size[1]};
        const auto& c = dit_.config();
        const std::vector<std::uint8_t> no_slots(static_cast<std::size_t>(states[1]), 0);
        together_ = std::min(prompts_, prompts_together);
        layout_ = dit::join(std::vector(static_cast<std::size_t>(together_), dit::make_layout(c, no_slots, {}, target)));
        ATELIER_CHECK_USAGE(prompts_ % together_ == 0, "{} prompts are not cut into {}", prompts_, together_);
        velocity_.resize(goal_.size());
        d_velocity_.resize(static_cast<std::size_t>(together_ * group_ * target.tokens() * c.out_channels));
        const auto keep = depth == Depth::forward ? dit::Keep::nothing : dit::Keep::activations;
        passes_ = std::make_unique<Passes>(workspace_.build([&](Arena& arena) {
            return Passes{nn::ParameterStore(dit_.table(), arena), dit::PrefixPass(dit_, together_ * states[1], together_ * states[1], keep, arena),
                          dit::TargetPass(dit_, together_ * group_, target.tokens(), states[1], keep, arena, together_)};
        }));
        dit::load(passes_->weights, fs::path(o.model) / "transformer");
        if (depth != Depth::forward) training_ = std::make_unique<Training>(dit_);
        tokens_ = target.tokens();
        text_ = states[1];
    }
    void run() override {
        const auto& c = dit_.config();
        const std::int64_t batch = together_ * group_, size = batch * tokens_ * c.out_channels;
        auto& [weights, prefix, target] = *passes_;
        if (training_) training_->clear();
        for (std::int64_t p = 0; p < prompts_ / together_; ++p) {
            const std::int64_t text = together_ * text_;
            const Tensor states = Tensor::of(states_.data() + p * text * c.context_dim, {text, c.context_dim});
            const Tensor x = Tensor::of(latents_.data() + p * size, {batch, tokens_, c.in_channels});
            const Tensor v = Tensor::of(velocity_.data() + p * size, {batch, tokens_, c.out_channels});
            prefix.forward(weights, layout_, states, {}, 0.0f);
            target.forward(weights, prefix, x, std::span(time_).subspan(static_cast<std::size_t>(p * batch), static_cast<std::size_t>(batch)), v);
            if (!training_) continue;
            const float scale = 2.0f / static_cast<float>(velocity_.size());
            for (std::int64_t i = 0; i < size; ++i)
                d_velocity_[static_cast<std::size_t>(i)] = scale * (v.f32()[i] - goal_[static_cast<std::size_t>(p * size + i)]);
            prefix.zero_key_gradients();
            target.backward(weights, training_->gradients, prefix, x, Tensor::of(d_velocity_.data(), v.shape()), {});
            prefix.backward(weights, training_->gradients, states, {}, {}, {});
        }
        if (depth_ == Depth::step) length_ = {static_cast<float>(training_->step(weights))};
        else if (training_) length_ = {static_cast<float>(std::sqrt(training_->norm.sum_of_squares(training_->gradients_memory)))};
    }
    std::vector<io::TensorToWrite> outputs() const override {
        std::vector<io::TensorToWrite> all{column("velocity", velocity_)};
        if (training_) all.push_back(column("gradient_norm", length_));
        return all;
    }

  private:
    struct Passes {
        nn::ParameterStore weights;
        dit::PrefixPass prefix;
        dit::TargetPass target;
    };
    Depth depth_;
    io::Safetensors inputs_;
    dit::Dit dit_;
    dit::Layout layout_;
    Workspace workspace_{"bench"};
    std::unique_ptr<Passes> passes_;
    std::unique_ptr<Training> training_;
    std::vector<float> states_, latents_, goal_, time_, velocity_, d_velocity_, length_;
    std::int64_t prompts_ = 0, together_ = 0, group_ = 0, tokens_ = 0, text_ = 0;
};

constexpr std::int64_t resolution = 128;

/// A model with one prompt encoded, and a second one where there is guidance.
struct Prompted {
    explicit Prompted(const Options& o) : model(o.model, {}, o.placement()), prompt(o.prompt), negative(o.negative), guided(o.guidance > 1) {
        std::vector<io::Image> images;
        for (const std::string& file : o.images) images.push_back(io::read_png(file));
        references = model.prepare(images, resolution);
        target = {resolution / model::pixels_per_latent, resolution / model::pixels_per_latent};
        encode();
    }
    void encode() {
        conditional = model.encode(prompt, references);
        if (guided) unconditional = model.encode(negative, references);
    }
    pipeline::Pipeline model;
    std::string prompt, negative;
    bool guided;
    std::shared_ptr<const model::ReferenceInputs> references;
    pipeline::EncodedPrompt conditional, unconditional;
    dit::Grid target;
};

/// One group's update: three trained steps of a trajectory that was sampled before, gradients, AdamW. outputs also hold the
/// trajectory: x, x_next [members, K, L * channels], log_prob [members, K], advantage, sigma, trained_step.
class Update final : public Work {
  public:
    explicit Update(const Options& o) : prompted_(o), training_(prompted_.model.dit()) {
        spec_.schedule = prompted_.model.schedule(o.steps, prompted_.target.tokens());
        spec_.trained_steps = {0, 1, 3};
        spec_.target = prompted_.target;
        spec_.members = spec_.micro_batch = o.group;
        spec_.guidance_train = flow::GuidanceTrain::none;
        policy_ = std::make_unique<rl::GroupPolicy>(workspace_.build([&](Arena& arena) {
            return rl::GroupPolicy(prompted_.model.dit(), prompted_.model.dit_weights(), prompted_.conditional, nullptr, spec_,
                                   dit::Keep::activations, arena);
        }));
        std::vector<RandomKey> keys;
        for (int i = 0; i < o.group; ++i) keys.push_back(flow::sample_noise_key(1, 0, 0, static_cast<std::uint64_t>(i)));
        trajectory_ = policy_->sample(keys);
        for (int i = 0; i < o.group; ++i) advantage_.push_back((i % 2 == 0 ? 1.0 : -1.0) * (1 + 0.1 * i));
    }
    void run() override {
        training_.clear();
        const double weight = 1.0 / static_cast<double>(trajectory_.log_prob.size());
        policy_->train({}, trajectory_, advantage_, weight, training_.gradients);
        length_ = {static_cast<float>(training_.step(prompted_.model.dit_weights()))};
    }
    std::vector<io::TensorToWrite> outputs() const override {
        advantage_f32_.assign(advantage_.begin(), advantage_.end());
        steps_f32_.assign(spec_.trained_steps.begin(), spec_.trained_steps.end());
        return {column("gradient_norm", length_), column("x", trajectory_.x), column("x_next", trajectory_.x_next),
                column("log_prob", trajectory_.log_prob), column("advantage", advantage_f32_), column("sigma", spec_.schedule.sigmas),
                column("trained_step", steps_f32_)};
    }

  private:
    Prompted prompted_;
    Training training_;
    rl::SamplingSpec spec_;
    Workspace workspace_{"bench"};
    std::unique_ptr<rl::GroupPolicy> policy_;
    rl::GroupTrajectory trajectory_;
    std::vector<double> advantage_;
    std::vector<float> length_;
    mutable std::vector<float> advantage_f32_, steps_f32_;
};

/// From prompts to pictures: encoding, steps, decoding. inputs: noise [group, L, channels].
class Rollout final : public Work {
  public:
    explicit Rollout(const Options& o) : o_(o), prompted_(o), noise_(io::Safetensors::open(o.inputs).floats("noise")) {}
    void run() override {
        prompted_.encode();
        pipeline::GenerateRequest r;
        r.conditional = {&prompted_.conditional};
        if (prompted_.guided) r.unconditional = {&prompted_.unconditional};
        r.guidance.scale = o_.guidance;
        r.target = prompted_.target;
        r.schedule = prompted_.model.schedule(o_.steps, r.target.tokens());
        r.pictures = o_.group;
        std::vector<float> latents = noise_;
        pipeline::generate_latents(prompted_.model.dit(), prompted_.model.dit_weights(), r, latents, workspace_);
        const std::int64_t planes = prompted_.model.vae().config().channels;
        pictures_.resize(static_cast<std::size_t>(o_.group * resolution * resolution * planes));
        prompted_.model.codec().decode(Tensor::of(latents.data(), {o_.group, r.target.tokens(), prompted_.model.dit().config().in_channels}),
                                       r.target.height, r.target.width,
                                       Tensor::of(pictures_.data(), {o_.group, resolution, resolution, planes}));
    }
    std::vector<io::TensorToWrite> outputs() const override { return {column("pictures", pictures_)}; }

  private:
    Options o_;
    Prompted prompted_;
    std::vector<float> noise_, pictures_;
    Workspace workspace_{"sampling"};
};

/// inputs: latents [N, L, channels], size [2].
class Decode final : public Work {
  public:
    explicit Decode(const Options& o)
        : inputs_(io::Safetensors::open(o.inputs)), vae_(vae::load_config(fs::path(o.model) / "vae/config.json")) {
        latents_ = inputs_.floats("latents");
        weights_ = std::make_unique<nn::ParameterStore>(workspace_.build([&](Arena& arena) { return nn::ParameterStore(vae_.table(), arena); }));
        vae::load(*weights_, fs::path(o.model) / "vae");
        codec_ = std::make_unique<vae::Codec>(vae_, *weights_);
        size_ = inputs_.integers("size");
    }
    void run() override {
        const auto& shape = inputs_.at("latents").shape;
        const std::int64_t f = vae_.config().factor(), planes = vae_.config().channels;
        pictures_.resize(static_cast<std::size_t>(shape[0] * size_[0] * f * size_[1] * f * planes));
        codec_->decode(Tensor::of(latents_.data(), shape), size_[0], size_[1],
                       Tensor::of(pictures_.data(), {shape[0], size_[0] * f, size_[1] * f, planes}));
    }
    std::vector<io::TensorToWrite> outputs() const override { return {column("pictures", pictures_)}; }

  private:
    io::Safetensors inputs_;
    vae::Vae vae_;
    Workspace workspace_{"weights"};
    std::unique_ptr<nn::ParameterStore> weights_;
    std::unique_ptr<vae::Codec> codec_;
    std::vector<std::int64_t> size_;
    std::vector<float> latents_, pictures_;
};

/// Encoder states of prompts, a line of `inputs` each.
class Encode final : public Work {
  public:
    explicit Encode(const Options& o) : model_(o.model), references_(model_.prepare({}, resolution)) {
        std::ifstream in(o.inputs);
        for (std::string line; std::getline(in, line);) prompts_.push_back(line);
        ATELIER_CHECK_USAGE(!prompts_.empty(), "{} holds no prompt", o.inputs);
    }
    void run() override {
        states_.clear();
        for (const std::string& prompt : prompts_) {
            const auto encoded = model_.encode(prompt, references_);
            states_.insert(states_.end(), encoded.states.begin(), encoded.states.end());
        }
    }
    std::vector<io::TensorToWrite> outputs() const override { return {column("states", states_)}; }

  private:
    pipeline::Pipeline model_;
    std::shared_ptr<const model::ReferenceInputs> references_;
    std::vector<std::string> prompts_;
    std::vector<float> states_;
};

std::unique_ptr<Work> make_work(const Options& o) {
    if (o.work == "forward") return std::make_unique<Transformer>(o, Transformer::Depth::forward);
    if (o.work == "backward") return std::make_unique<Transformer>(o, Transformer::Depth::backward);
    if (o.work == "step") return std::make_unique<Transformer>(o, Transformer::Depth::step);
    if (o.work == "update") return std::make_unique<Update>(o);
    if (o.work == "rollout") return std::make_unique<Rollout>(o);
    if (o.work == "decode") return std::make_unique<Decode>(o);
    if (o.work == "encode") return std::make_unique<Encode>(o);
    ATELIER_FAIL(ErrorKind::usage, "unknown work '{}': forward, backward, step, update, rollout, decode or encode", o.work);
}

void serve(const Options& o) {
    ATELIER_CHECK_USAGE(o.dtype == "f32" || (o.dtype == "bf16" && ops::cpu::has_amx()), "dtype {}: f32, or bf16 on a processor with bf16 products", o.dtype);
    set_threads(o.threads);
    const auto work = make_work(o);
    std::cout << "ready" << std::endl;
    for (std::string line; std::getline(std::cin, line);) {
        if (line == "run") {
            const auto begin = std::chrono::steady_clock::now();
            work->run();
            std::cout << std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() << std::endl;
        } else if (line == "write") {
            io::write_safetensors(o.outputs, work->outputs());
            std::cout << "written" << std::endl;
        } else {
            ATELIER_FAIL(ErrorKind::usage, "run or write expected, found '{}'", line);
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    namespace po = boost::program_options;
    Options o;
    po::options_description text("engine_bench: one piece of work, again and again");
    text.add_options()("work", po::value(&o.work)->required())("model", po::value(&o.model)->required())("inputs", po::value(&o.inputs))(
        "outputs", po::value(&o.outputs))("prompt", po::value(&o.prompt))("negative", po::value(&o.negative))("image", po::value(&o.images)->composing())(
        "guidance", po::value(&o.guidance))("threads", po::value(&o.threads))("group", po::value(&o.group))("steps", po::value(&o.steps))(
        "dtype", po::value(&o.dtype));
    try {
        po::variables_map values;
        po::store(po::parse_command_line(argc, argv, text), values);
        po::notify(values);
        serve(o);
        return 0;
    } catch (const std::exception& e) {
        std::cerr << "engine_bench: " << e.what() << '\n';
        return 1;
    }
}
