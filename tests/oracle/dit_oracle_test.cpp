// The transformer against values that diffusers computed in float64. Every case of transformer/ runs: all tokens' outputs,
// target outputs, gradients of all parameters and inputs, prefix caches over steps, a LoRA adapter.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>

#include "core/parallel.hpp"
#include "io/safetensors.hpp"
#include "model/dit/dit.hpp"
#include "nn/lora_file.hpp"
#include "../ops/test_device.hpp"
#include "oracle_folder.hpp"

namespace atelier::dit {
namespace {

namespace fs = std::filesystem;

// A float32 run of diffusers itself shows `float32_error`; ours may round elsewhere and gets this many times that.
constexpr double allowance = 8;

/// Largest difference over the RMS of what is expected.
double relative_error(const float* found, const std::vector<float>& expected) {
    double square = 0, worst = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
        square += double(expected[i]) * expected[i];
        worst = std::max(worst, std::abs(double(found[i]) - expected[i]));
    }
    return worst / std::max(std::sqrt(square / static_cast<double>(expected.size())), 1e-30);
}

/// On the device that is tested, with weights and gradients in host memory beside it.
struct Model {
    explicit Model(const fs::path& directory, ops::ProductPrecision precision = ops::ProductPrecision::fp32)
        : dit(load_config(directory / "config.json"), testing::test_device(), precision) {
        workspace.build([&](Arena& arena) {
            host_weights = weights = nn::ParameterStore(dit.table(), arena);
            host_gradients = gradients = nn::ParameterStore(dit.table(), arena);
            if (dit.device() == Device::cpu) return 0;
            weights = nn::ParameterStore(dit.table(), arena, dit.device());
            gradients = nn::ParameterStore(dit.table(), arena, dit.device());
            return 0;
        });
        load(host_weights, directory);
        load(weights, directory);
        if (dit.rounds_operands())
            nn::round_to(DType::bf16, {weights.data(), static_cast<std::size_t>(weights.flat().elements())});
    }
    ~Model() {
        if (dit.device() != Device::cpu) ops::backend().keep_bf16_copy(weights.data(), 0);
    }
    void upload() const {
        transfer(host_weights.flat(), weights.flat());
        if (dit.device() != Device::cpu) ops::backend().refresh_bf16_copy(weights.data());
    }
    void download() const { transfer(gradients.flat(), host_gradients.flat()); }
    Dit dit;
    Workspace workspace{"model"};
    nn::ParameterStore host_weights, host_gradients, weights, gradients;
};

struct Inputs {
    explicit Inputs(const fs::path& folder) : file(io::Safetensors::open(folder / "inputs.safetensors")) {
        const auto& hidden = file.at("hidden_states").shape;
        const auto& context = file.at("encoder_hidden_states").shape;
        batch = hidden[0];
        image_tokens = hidden[1];
        channels = hidden[2];
        text = context[1];
        context_dim = context[2];
        latents = file.floats("hidden_states");
        states = file.floats("encoder_hidden_states");
        timestep = file.floats("timestep");
        const auto shapes = file.integers("img_shapes");
        for (std::size_t i = 0; i < shapes.size(); i += 3) grids.push_back({shapes[i + 1], shapes[i + 2]});
        target = grids.back();
        grids.pop_back();
        for (auto v : file.integers("img_mask")) mask.push_back(static_cast<std::uint8_t>(v));
        mask_tokens = file.at("img_mask").shape[1];
        if (file.contains("encoder_hidden_states_mask"))
            for (auto v : file.integers("encoder_hidden_states_mask")) valid.push_back(static_cast<std::uint8_t>(v));
    }
    Layout layout(const Config& config, std::int64_t row) const {
        return make_layout(config, std::span(mask).subspan(row * mask_tokens, text), grids, target,
                           valid.empty() ? std::span<const std::uint8_t>() : std::span(valid).subspan(row * text, text));
    }
    std::int64_t references() const { return image_tokens - target.tokens(); }
    Tensor row_states(std::int64_t row) { return Tensor::of(states.data() + row * text * context_dim, {text, context_dim}); }
    Tensor row_references(std::int64_t row) {
        return Tensor::of(latents.data() + row * image_tokens * channels, {references(), channels});
    }
    Tensor row_target(std::int64_t row) {
        return Tensor::of(latents.data() + (row * image_tokens + references()) * channels, {1, target.tokens(), channels});
    }

    io::Safetensors file;
    std::int64_t batch, image_tokens, channels, text, context_dim, mask_tokens;
    std::vector<float> latents, states, timestep;
    std::vector<std::uint8_t> mask, valid;
    std::vector<Grid> grids;
    Grid target;
};

struct Result {
    std::vector<float> output, target, d_latents, d_states;
};

/// Each row of the case by itself, as the engine runs prompts; gradients are summed in model.gradients.
Result run(Model& model, Inputs& in, Keep keep, const std::vector<float>& loss_weight) {
    const Config& c = model.dit.config();
    const Layout first = in.layout(c, 0);
    const std::int64_t prefix_tokens = first.prefix_tokens(), tokens = in.target.tokens();
    const auto build = [&](Arena& arena) {
        return std::pair(PrefixPass(model.dit, prefix_tokens, in.text, keep, arena),
                         TargetPass(model.dit, 1, tokens, prefix_tokens, keep, arena));
    };
    Workspace workspace("activations");
    auto [prefix, target] = workspace.build(build);
    Result r;
    r.output.resize(in.batch * (prefix_tokens + tokens) * c.out_channels);
    r.target.resize(in.batch * tokens * c.out_channels);
    r.d_latents.resize(in.latents.size());
    r.d_states.resize(in.states.size());
    if (model.gradients.lora() == nullptr) clear(model.gradients.flat());
    for (std::int64_t row = 0; row < in.batch; ++row) {
        const Layout layout = in.layout(c, row);
        const float t = in.timestep[row % in.timestep.size()], prefix_t = c.causal_condition ? 0.0f : t;
        float* out = r.output.data() + row * (prefix_tokens + tokens) * c.out_channels;
        float* velocity = r.target.data() + row * tokens * c.out_channels;
        const Tensor v = Tensor::of(velocity, {1, tokens, c.out_channels});
        prefix.forward(model.weights, layout, in.row_states(row), in.row_references(row), prefix_t,
                       Tensor::of(out, {prefix_tokens, c.out_channels}));
        target.forward(model.weights, prefix, in.row_target(row), std::span(&t, 1), v);
        std::copy_n(velocity, tokens * c.out_channels, out + prefix_tokens * c.out_channels);
        if (keep == Keep::nothing) continue;
        const std::vector<float> with_outputs(velocity, velocity + tokens * c.out_channels);
        prefix.forward(model.weights, layout, in.row_states(row), in.row_references(row), prefix_t);
        prefix.zero_key_gradients();
        target.forward(model.weights, prefix, in.row_target(row), std::span(&t, 1), v);
        EXPECT_TRUE(std::equal(with_outputs.begin(), with_outputs.end(), velocity));
        const Tensor dv = Tensor::of(loss_weight.data() + row * tokens * c.out_channels, {1, tokens, c.out_channels});
        const auto latents_at = [&](std::int64_t token) { return r.d_latents.data() + (row * in.image_tokens + token) * in.channels; };
        target.backward(model.weights, model.gradients, prefix, in.row_target(row), dv,
                        Tensor::of(latents_at(in.references()), {1, tokens, in.channels}));
        prefix.backward(model.weights, model.gradients, in.row_states(row), in.row_references(row),
                        Tensor::of(r.d_states.data() + row * in.text * in.context_dim, {in.text, in.context_dim}),
                        in.references() > 0 ? Tensor::of(latents_at(0), {in.references(), in.channels}) : Tensor());
    }
    if (model.gradients.has_values()) model.download();
    return r;
}

nlohmann::json case_info(const fs::path& folder) { return nlohmann::json::parse(std::ifstream(folder / "case.json")); }

std::vector<fs::path> gradient_cases() {
    std::vector<fs::path> cases;
    for (const auto& folder : testing::oracle_cases("transformer", "case-"))
        if (io::Safetensors::open(folder / "outputs.safetensors").contains("loss")) cases.push_back(folder);
    return cases;
}

void check_case(const fs::path& folder) {
    SCOPED_TRACE(folder.filename().string());
    const auto info = case_info(folder);
    Model model(folder.parent_path() / info["model"].get<std::string>());
    // With an adapter its gradients are asked for alone, as in training.
    std::unique_ptr<nn::LoraAdapter> adapter, gradients;
    if (info.contains("adapter")) {
        adapter = std::make_unique<nn::LoraAdapter>(nn::load_lora(folder / info["adapter"].get<std::string>(), model.dit.table()));
        if (model.dit.device() == Device::cpu) {
            gradients = std::make_unique<nn::LoraAdapter>(adapter->table());
            model.weights = model.weights.with_lora(&adapter->store());
            model.gradients = nn::ParameterStore(model.dit.table(), gradients->store());
        } else {  // beside the weights it runs on the CPU
            nn::merge_lora(adapter->store(), model.host_weights);
            model.upload();
        }
    }
    Inputs in(folder);
    const auto expected = io::Safetensors::open(folder / "outputs.safetensors");
    const double forward = allowance * info["float32_error"]["output"].get<double>();
    const double backward = allowance * info["float32_error"]["gradients_max"].get<double>();
    const auto loss_weight = in.file.floats("loss_weight");
    const Result r = run(model, in, Keep::activations, loss_weight);

    EXPECT_LT(relative_error(r.output.data(), expected.floats("output")), forward);
    EXPECT_LT(relative_error(r.target.data(), expected.floats("target")), forward);
    EXPECT_LT(relative_error(r.d_latents.data(), expected.floats("grad.hidden_states")), backward);
    EXPECT_LT(relative_error(r.d_states.data(), expected.floats("grad.encoder_hidden_states")), backward);
    if (adapter && !gradients) return;
    std::size_t compared = 4;  // output, target, two inputs
    for (const auto& [name, stored] : expected.tensors()) {
        if (!name.starts_with("grad.") || name == "grad.hidden_states" || name == "grad.encoder_hidden_states") continue;
        std::string parameter = name.substr(5);
        // PEFT names the adapter inside: lora_A.default.weight.
        if (const auto at = parameter.find(".default"); at != std::string::npos) parameter.erase(at, 8);
        const float* found = adapter ? gradients->store().values().at(parameter).f32() : model.host_gradients.at(parameter).f32();
        EXPECT_LT(relative_error(found, expected.floats(name)), backward) << name;
        ++compared;
    }
    EXPECT_EQ(compared + 1, expected.tensors().size()) << "a tensor of the case was not compared";  // + loss
    EXPECT_EQ(compared, 4u + static_cast<std::size_t>(adapter ? adapter->table().table().size() : model.dit.table().size()));
    if (!adapter) return;
    // Merged into the weights it is the same model.
    nn::merge_lora(adapter->store(), model.weights);
    model.weights = model.weights.with_lora(nullptr);
    const Result merged = run(model, in, Keep::nothing, loss_weight);
    EXPECT_LT(relative_error(merged.target.data(), expected.floats("target")), forward);
    nn::merge_lora(adapter->store(), model.weights, -1.0f);
    EXPECT_GT(relative_error(run(model, in, Keep::nothing, loss_weight).target.data(), expected.floats("target")), 100 * forward)
        << "the adapter changes too little for this comparison to see it";
}

TEST(dit_oracle, OutputsAndGradients) {
    const auto cases = gradient_cases();
    ASSERT_GE(cases.size(), 7u);
    for (const auto& folder : cases) check_case(folder);
}

/// What prompts of one or several layouts left behind: velocities, gradients of weights and of encoder states.
struct Passed {
    std::vector<float> velocity, gradients, d_states;
};

/// `layouts` one after another, or, with `together`, as one; `members` targets of each. states, latents and d_velocity follow one another.
Passed pass(Model& model, const std::vector<Layout>& layouts, bool together, std::int64_t members, std::vector<float>& states,
            std::vector<float>& references, std::vector<float>& latents, const std::vector<float>& timesteps, const std::vector<float>& d_velocity) {
    const Config& c = model.dit.config();
    const Layout all = join(layouts);
    const std::int64_t count = std::ssize(layouts), tokens = all.target_tokens, prompts = together ? count : 1, batch = prompts * members;
    std::int64_t longest = 0;
    for (const Layout& l : layouts) longest = std::max(longest, l.prefix_tokens());
    Workspace workspace("activations");
    auto [prefix, target] = workspace.build([&](Arena& arena) {
        return std::pair(PrefixPass(model.dit, all.prefix_tokens(), all.encoder_tokens, Keep::activations, arena),
                         TargetPass(model.dit, batch, tokens, longest, Keep::activations, arena, prompts));
    });
    Passed r;
    r.velocity.resize(static_cast<std::size_t>(count * members * tokens * c.out_channels));
    r.d_states.resize(states.size());
    clear(model.gradients.flat());
    std::int64_t state = 0, reference = 0;
    for (std::int64_t p = 0; p < count; p += prompts) {
        const Layout& layout = together ? all : layouts[static_cast<std::size_t>(p)];
        const auto part = [&](const std::vector<float>& from, std::int64_t channels) {
            return Tensor::of(from.data() + p * members * tokens * channels, {batch, tokens, channels});
        };
        const Tensor s = Tensor::of(states.data() + state * c.context_dim, {layout.encoder_tokens, c.context_dim});
        const Tensor d_s = Tensor::of(r.d_states.data() + state * c.context_dim, s.shape());
        const Tensor refs = layout.reference_tokens == 0
                                ? Tensor()
                                : Tensor::of(references.data() + reference * c.in_channels, {layout.reference_tokens, c.in_channels});
        prefix.forward(model.weights, layout, s, refs, c.causal_condition ? 0.0f : timesteps[0]);
        prefix.zero_key_gradients();
        target.forward(model.weights, prefix, part(latents, c.in_channels),
                       std::span(timesteps).subspan(static_cast<std::size_t>(p * members), static_cast<std::size_t>(batch)), part(r.velocity, c.out_channels));
        target.backward(model.weights, model.gradients, prefix, part(latents, c.in_channels), part(d_velocity, c.out_channels), {});
        prefix.backward(model.weights, model.gradients, s, refs, d_s, {});
        state += layout.encoder_tokens;
        reference += layout.reference_tokens;
    }
    model.download();
    r.gradients.assign(model.host_gradients.data(), model.host_gradients.data() + model.dit.table().flat_size());
    return r;
}

TEST(dit_oracle, PromptsTogetherAreThePromptsAlone) {
    int mixed = 0;
    for (const auto& folder : gradient_cases()) {
        SCOPED_TRACE(folder.filename().string());
        const auto info = case_info(folder);
        if (info.contains("adapter")) continue;
        Model model(folder.parent_path() / info["model"].get<std::string>());
        const Config& c = model.dit.config();
        if (!c.causal_condition) continue;  // its prefix depends on the sample's own timestep
        Inputs in(folder);
        // The case's rows, and where nothing but text is before the target, a prompt that ends two tokens earlier.
        std::vector<Layout> layouts;
        std::vector<float> states, references, latents, d_velocity;
        constexpr std::int64_t members = 2;
        for (std::int64_t row = 0; row < in.batch + 1; ++row) {
            const bool shorter = row == in.batch;
            const std::int64_t from = row % in.batch, text = in.text - (shorter ? 2 : 0);
            if (shorter && in.references() > 0) continue;
            mixed += shorter ? 1 : 0;
            layouts.push_back(make_layout(c, std::span(in.mask).subspan(from * in.mask_tokens, text), in.grids, in.target,
                                          in.valid.empty() || shorter ? std::span<const std::uint8_t>() : std::span(in.valid).subspan(from * in.text, text)));
            const Tensor s = in.row_states(from), r = in.row_references(from), t = in.row_target(from);
            states.insert(states.end(), s.f32(), s.f32() + text * c.context_dim);
            references.insert(references.end(), r.f32(), r.f32() + r.elements());
            for (std::int64_t m = 0; m < members; ++m) {
                for (std::int64_t i = 0; i < t.elements(); ++i) latents.push_back(t.f32()[i] * (m == 0 ? 1.0f : -0.5f));
                for (std::int64_t i = 0; i < in.target.tokens() * c.out_channels; ++i) d_velocity.push_back(std::sin(0.37f * static_cast<float>(i + row)));
            }
        }
        std::vector<float> timesteps;
        for (std::int64_t i = 0; i < std::ssize(layouts) * members; ++i) timesteps.push_back(0.9f - 0.05f * static_cast<float>(i));
        const Passed alone = pass(model, layouts, false, members, states, references, latents, timesteps, d_velocity);
        const Passed together = pass(model, layouts, true, members, states, references, latents, timesteps, d_velocity);
        // A row's bits don't depend on its company; products of a device may choose another way for more rows.
        if (model.dit.device() == Device::cpu) {
            EXPECT_EQ(together.velocity, alone.velocity);
        }
        EXPECT_LT(relative_error(together.velocity.data(), alone.velocity), 1e-5);
        EXPECT_LT(relative_error(together.gradients.data(), alone.gradients), 2e-5);
        EXPECT_LT(relative_error(together.d_states.data(), alone.d_states), 2e-5);
    }
    EXPECT_GE(mixed, 1) << "no case has prompts of different lengths";
}

TEST(dit_oracle, PrefixCacheOverSteps) {
    const auto cases = testing::oracle_cases("transformer", "case-cache-");
    ASSERT_GE(cases.size(), 2u);
    for (const auto& folder : cases) {
        SCOPED_TRACE(folder.filename().string());
        const auto info = case_info(folder);
        Model model(folder.parent_path() / info["model"].get<std::string>());
        const Config& c = model.dit.config();
        Inputs in(folder);
        const auto steps = in.file.floats("steps.timestep");
        auto noise = in.file.floats("steps.target_latents");
        const auto expected = io::Safetensors::open(folder / "outputs.safetensors");
        const std::int64_t tokens = in.target.tokens(), prefix_tokens = in.layout(c, 0).prefix_tokens();
        const std::size_t picture = static_cast<std::size_t>(tokens * c.out_channels);
        Workspace workspace("activations");
        auto [prefix, target] = workspace.build([&](Arena& arena) {
            return std::pair(PrefixPass(model.dit, prefix_tokens, in.text, Keep::nothing, arena),
                             TargetPass(model.dit, 1, tokens, prefix_tokens, Keep::nothing, arena));
        });
        std::vector<std::vector<float>> found(steps.size(), std::vector<float>(picture * in.batch));
        for (std::int64_t row = 0; row < in.batch; ++row) {
            const Layout layout = in.layout(c, row);
            prefix.forward(model.weights, layout, in.row_states(row), in.row_references(row), 0.0f);
            for (std::size_t s = 0; s < steps.size(); ++s)
                target.forward(model.weights, prefix,
                               Tensor::of(noise.data() + (s * in.batch + row) * tokens * in.channels, {1, tokens, in.channels}),
                               std::span(&steps[s], 1),
                               Tensor::of(found[s].data() + row * picture, {1, tokens, c.out_channels}));
        }
        // The case states no error of its own; the same model's forward cases do.
        double worst = 0;
        for (const auto& other : gradient_cases()) worst = std::max(worst, case_info(other)["float32_error"]["output"].get<double>());
        for (std::size_t s = 0; s < steps.size(); ++s)
            EXPECT_LT(relative_error(found[s].data(), expected.floats("target." + std::to_string(s))), allowance * worst) << s;
    }
}

// What a target pass reads of a layout is loaded once a run of a prefix: of two that take turns, and of one that runs again.
TEST(dit_oracle, TargetPassesReadTheLayoutOfTheirPrefix) {
    const fs::path folder = gradient_cases().front();
    Model model(folder.parent_path() / case_info(folder)["model"].get<std::string>());
    const Config& c = model.dit.config();
    Inputs in(folder);
    const std::int64_t tokens = in.target.tokens();
    ASSERT_GT(in.target.height, 1);
    const auto layout = [&](Grid target) { return make_layout(c, std::span(in.mask).first(static_cast<std::size_t>(in.text)), in.grids, target); };
    const Layout wide = layout({1, tokens}), usual = layout(in.target);
    const std::int64_t prefix_tokens = usual.prefix_tokens();
    Workspace workspace("activations");
    struct Passes {
        PrefixPass one, other;
        TargetPass target, fresh;
    };
    Passes p = workspace.build([&](Arena& arena) {
        const auto prefix = [&] { return PrefixPass(model.dit, prefix_tokens, in.text, Keep::nothing, arena); };
        const auto target = [&] { return TargetPass(model.dit, 1, tokens, prefix_tokens, Keep::nothing, arena); };
        return Passes{prefix(), prefix(), target(), target()};
    });
    const auto velocity = [&](TargetPass& target, const PrefixPass& prefix) {
        std::vector<float> found(static_cast<std::size_t>(tokens * c.out_channels));
        const float t = 0.5f;
        target.forward(model.weights, prefix, in.row_target(0), std::span(&t, 1), Tensor::of(found.data(), {1, tokens, c.out_channels}));
        return found;
    };
    p.one.forward(model.weights, usual, in.row_states(0), in.row_references(0), 0.0f);
    p.other.forward(model.weights, wide, in.row_states(0), in.row_references(0), 0.0f);
    const std::vector<float> of_one = velocity(p.target, p.one), of_other = velocity(p.fresh, p.other);
    EXPECT_NE(of_one, of_other);
    EXPECT_EQ(velocity(p.target, p.other), of_other);
    for (int step = 0; step < 3; ++step) EXPECT_EQ(velocity(p.target, p.one), of_one);
    p.one.forward(model.weights, wide, in.row_states(0), in.row_references(0), 0.0f);
    EXPECT_EQ(velocity(p.target, p.one), of_other);
}

// Inference, training and recompute run the same kernels: the same bits, on any number of threads.
TEST(dit_oracle, BitsDoNotDependOnKeepingOrThreads) {
    for (const auto& folder : gradient_cases()) {
        SCOPED_TRACE(folder.filename().string());
        Model model(folder.parent_path() / case_info(folder)["model"].get<std::string>());
        Inputs in(folder);
        const auto loss_weight = in.file.floats("loss_weight");
        const Result full = run(model, in, Keep::activations, loss_weight);
        const std::vector<float> gradients(model.host_gradients.data(),
                                           model.host_gradients.data() + model.host_gradients.flat().elements());
        for (int n : {1, 2, 3}) {
            set_threads(n);
            EXPECT_EQ(run(model, in, Keep::nothing, loss_weight).output, full.output);
            for (const Keep keep : {Keep::products, Keep::branches, Keep::inputs}) {
                const Result again = run(model, in, keep, loss_weight);
                EXPECT_EQ(again.target, full.target);
                EXPECT_EQ(again.d_latents, full.d_latents);
                EXPECT_TRUE(std::equal(gradients.begin(), gradients.end(), model.host_gradients.data()));
            }
        }
        set_threads(1);
    }
}

double rms_error(const std::vector<float>& found, const std::vector<float>& expected) {
    double square = 0, error = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
        square += double(expected[i]) * expected[i];
        error += (double(found[i]) - expected[i]) * (double(found[i]) - expected[i]);
    }
    return std::sqrt(error / square);
}

// Operands of products and attention rounded to bf16 (by up to 2^-8 of each): errors of a dozen roundings a layer add like a random
// walk, and once more on the way back.
TEST(dit_oracle, ProductsInBf16) {
    const bool on_device = testing::test_device() != Device::cpu;
    for (const auto& folder : gradient_cases()) {
        SCOPED_TRACE(folder.filename().string());
        const auto info = case_info(folder);
        if (info.contains("adapter")) continue;
        Model model(folder.parent_path() / info["model"].get<std::string>(), ops::ProductPrecision::bf16);
        Inputs in(folder);
        const auto expected = io::Safetensors::open(folder / "outputs.safetensors");
        if (on_device) ops::backend().set_product_precision(ops::ProductPrecision::bf16);
        const Result r = run(model, in, Keep::activations, in.file.floats("loss_weight"));
        const std::vector<float> gradients(model.host_gradients.data(), model.host_gradients.data() + model.dit.table().flat_size());
        std::vector<std::pair<Result, std::vector<float>>> others;
        for (const Keep keep : {Keep::products, Keep::branches, Keep::inputs}) {
            Result again = run(model, in, keep, in.file.floats("loss_weight"));
            others.emplace_back(std::move(again), std::vector<float>(model.host_gradients.data(), model.host_gradients.data() + gradients.size()));
        }
        if (on_device) ops::backend().set_product_precision(ops::ProductPrecision::fp32);
        for (const auto& [again, its_gradients] : others) {
            EXPECT_EQ(again.output, r.output);
            EXPECT_EQ(again.d_latents, r.d_latents);
            EXPECT_EQ(its_gradients, gradients) << "gradients of what was kept and of what was repeated";
        }
        const double bound = 0x1p-8 * std::sqrt(12.0 * static_cast<double>(model.dit.config().layers));
        EXPECT_LT(rms_error(r.output, expected.floats("output")), bound);
        EXPECT_GT(rms_error(r.output, expected.floats("output")), 0x1p-12) << "products were not in bf16";
        EXPECT_LT(rms_error(r.d_latents, expected.floats("grad.hidden_states")), 2 * bound);
        EXPECT_LT(rms_error(r.d_states, expected.floats("grad.encoder_hidden_states")), 2 * bound);
        for (const nn::ParameterSpec& spec : model.dit.table().specs()) {
            const float* found = model.host_gradients.at(spec.name).f32();
            EXPECT_LT(rms_error({found, found + spec.shape.elements()}, expected.floats("grad." + spec.name)), 2 * bound) << spec.name;
        }
    }
}

// A check that cannot fail checks nothing: a weight off by one part in a hundred must show.
TEST(dit_oracle, SeesAChangedWeight) {
    const auto folder = gradient_cases().front();
    const auto info = case_info(folder);
    Model model(folder.parent_path() / info["model"].get<std::string>());
    Inputs in(folder);
    const auto expected = io::Safetensors::open(folder / "outputs.safetensors").floats("target");
    for (int row : {model.dit.modulation, model.dit.blocks()[0].k_norm, model.dit.text_norm, model.dit.time_in}) {
        const Tensor w = model.host_weights[row];
        const std::vector<float> kept(w.f32(), w.f32() + w.elements());
        for (std::int64_t i = 0; i < w.elements(); ++i) w.f32()[i] *= 1.01f;
        model.upload();
        const Result r = run(model, in, Keep::nothing, {});
        EXPECT_GT(relative_error(r.target.data(), expected), allowance * info["float32_error"]["output"].get<double>())
            << model.dit.table().spec(row).name;
        std::copy(kept.begin(), kept.end(), w.f32());
        model.upload();
    }
}

}  // namespace
}  // namespace atelier::dit
