// Sampling, replaying and training a group on the toy pipeline of the oracle data.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <set>

#include "core/parallel.hpp"
#include "flow/noise.hpp"
#include "io/image/png.hpp"
#include "optim/adamw.hpp"
#include "../ops/test_device.hpp"
#include "../oracle/oracle_folder.hpp"
#include "rl/advantage.hpp"
#include "rl/curation.hpp"
#include "rl/group_policy.hpp"

namespace atelier::rl {
namespace {

/// Numbers of a tensor wherever it lies.
std::vector<float> read(const Tensor& from) {
    std::vector<float> numbers(static_cast<std::size_t>(from.elements()));
    transfer(from, Tensor::of(numbers.data(), from.shape()));
    return numbers;
}
void write(const std::vector<float>& numbers, const Tensor& to) { transfer(Tensor::of(numbers.data(), to.shape()), to); }

/// One number for each parameter of a model, where the model runs; zero at first.
struct Store {
    explicit Store(const pipeline::Pipeline& model)
        : values(workspace.build(
              [&](Arena& arena) { return nn::ParameterStore(model.dit().table(), arena, model.dit().device()); })) {}
    std::span<float> span() const { return {values.data(), static_cast<std::size_t>(values.flat().elements())}; }
    Workspace workspace{"numbers"};
    nn::ParameterStore values;
};

pipeline::Placement placement(ops::ProductPrecision precision, bool takes_adapter) {
    pipeline::Placement p(testing::test_device());
    p.precision = precision;
    p.takes_adapter = takes_adapter;
    p.weights_change = true;
    return p;
}

struct Fixture {
    explicit Fixture(ops::ProductPrecision precision = ops::ProductPrecision::fp32, bool takes_adapter = false)
        : model(testing::oracle_folder() / "pipeline" / "pipeline", {}, placement(precision, takes_adapter)) {
        spec.target = {4, 4};
        spec.schedule = model.schedule(6, spec.target.tokens());
        spec.trained_steps = {0, 2, 3};
        spec.guidance.scale = 2.5;
        spec.members = 4;
        spec.micro_batch = 2;
        for (int m = 0; m < spec.members; ++m) keys.push_back(flow::sample_noise_key(1, 2, 3, m));
    }
    void text_prompt() {
        conditional = model.encode("A red circle left of the blue star", nullptr);
        unconditional = model.encode("", nullptr);
    }
    void edit_prompt() {
        const auto folder = testing::oracle_folder() / "pipeline" / "case-e2e-edit";
        const std::vector<io::Image> images{io::read_png(folder / "image-0.png")};
        references = model.prepare(images, 96);
        conditional = model.encode("make the circle green", references);
        unconditional = model.encode("", references);
    }
    template <typename Function>
    auto with_policy(dit::Keep keep, Function f) {
        return with_branches(keep, &unconditional, f);
    }
    /// With the branches that are trained alone, as updates and replays have it.
    template <typename Function>
    auto with_trained_branches(dit::Keep keep, Function f) {
        return with_branches(keep, spec.trains_both_branches() ? &unconditional : nullptr, f);
    }
    template <typename Function>
    auto with_branches(dit::Keep keep, const pipeline::EncodedPrompt* negative, Function f) {
        Workspace workspace("group");
        GroupPolicy policy = workspace.build([&](Arena& arena) {
            return GroupPolicy(model.dit(), model.dit_weights(), conditional, negative, spec, keep, arena);
        });
        return f(policy);
    }
    pipeline::Pipeline model;
    SamplingSpec spec;
    std::vector<RandomKey> keys;
    pipeline::EncodedPrompt conditional, unconditional;
    std::shared_ptr<const pipeline::ReferenceInputs> references;  ///< of the edit
};

class Replay : public ::testing::TestWithParam<std::tuple<flow::GuidanceTrain, flow::Sampler, bool>> {};

TEST_P(Replay, GivesTheStoredLogProbabilityBitForBit) {
    const auto [train, sampler, edit] = GetParam();
    Fixture f;
    edit ? f.edit_prompt() : f.text_prompt();
    f.spec.guidance_train = train;
    f.spec.sampler = sampler;
    const GroupTrajectory t = f.with_policy(dit::Keep::nothing, [&](GroupPolicy& p) { return p.sample(f.keys); });
    for (float v : t.log_prob) EXPECT_TRUE(std::isfinite(v));
    for (int n : {1, 2})
        for (dit::Keep keep : {dit::Keep::nothing, dit::Keep::activations, dit::Keep::products, dit::Keep::branches, dit::Keep::inputs}) {
            set_threads(n);
            EXPECT_EQ(f.with_policy(keep, [&](GroupPolicy& p) { return p.replay(t); }), t.log_prob);
            EXPECT_EQ(f.with_trained_branches(keep, [&](GroupPolicy& p) { return p.replay(t); }), t.log_prob);
            const auto again = f.with_policy(keep, [&](GroupPolicy& p) { return p.sample(f.keys); });
            EXPECT_EQ(again.latents, t.latents);
            EXPECT_EQ(again.x_next, t.x_next);
        }
    set_threads(1);
    // A member's trajectory does not depend on who shares its micro-batch's place in the group.
    std::vector<RandomKey> swapped = f.keys;
    std::swap(swapped[0], swapped[3]);
    const auto other = f.with_policy(dit::Keep::nothing, [&](GroupPolicy& p) { return p.sample(swapped); });
    const std::size_t n = t.latents.size() / f.keys.size();
    EXPECT_TRUE(std::equal(t.latents.begin(), t.latents.begin() + n, other.latents.begin() + 3 * n));
}

TEST(GroupPolicy, TheGuidedLogProbabilityStandsBesideTheTrainedOne) {
    Fixture f;
    f.text_prompt();
    const auto sampled = [&](flow::GuidanceTrain train) {
        f.spec.guidance_train = train;
        return f.with_policy(dit::Keep::nothing, [&](GroupPolicy& p) { return p.sample(f.keys); });
    };
    const GroupTrajectory conditional = sampled(flow::GuidanceTrain::conditional), guided = sampled(flow::GuidanceTrain::guided);
    ASSERT_EQ(conditional.latents, guided.latents);
    EXPECT_EQ(conditional.log_prob_guided, guided.log_prob);
    EXPECT_NE(conditional.log_prob, guided.log_prob);
    EXPECT_TRUE(guided.log_prob_guided.empty());
    EXPECT_TRUE(sampled(flow::GuidanceTrain::none).log_prob_guided.empty());
}

TEST(GroupPolicy, OnlyTrainingOfOneBranchDoesWithoutANegativePrompt) {
    Fixture f;
    f.text_prompt();
    const GroupTrajectory t = f.with_policy(dit::Keep::nothing, [&](GroupPolicy& p) { return p.sample(f.keys); });
    const std::vector<double> advantage{1, -1, 0.5, -0.5};
    const auto gradient = [&](bool with_negative) {
        Store gradients(f.model);
        const auto train = [&](GroupPolicy& p) { return p.train({}, t, advantage, 1.0, gradients.values); };
        with_negative ? f.with_policy(dit::Keep::activations, train) : f.with_trained_branches(dit::Keep::activations, train);
        return read(gradients.values.flat());
    };
    EXPECT_EQ(gradient(false), gradient(true));
    EXPECT_THROW(f.with_trained_branches(dit::Keep::nothing, [&](GroupPolicy& p) { return p.sample(f.keys); }), Error);
    f.spec.guidance_train = flow::GuidanceTrain::guided;
    EXPECT_THROW(f.with_branches(dit::Keep::nothing, nullptr, [&](GroupPolicy& p) { return p.replay(t); }), Error);
}

TEST(GroupPolicy, SamplingStopsBeforeAStep) {
    Fixture f;
    f.text_prompt();
    for (int steps : {0, 1, 7, 11, 12}) {  // of 6 for each of two micro-batches
        int asked = 0;
        const auto drawn = f.with_policy(dit::Keep::nothing, [&](GroupPolicy& p) { return p.sample(f.keys, [&] { return asked++ == steps; }); });
        EXPECT_EQ(drawn.has_value(), steps == 12);
        EXPECT_EQ(asked, std::min(steps + 1, 12));
    }
}

TEST(GroupPolicy, ReplayOfGroupsOfAnySize) {
    for (const bool edit : {false, true})
        for (const auto& [members, micro_batch] : {std::pair{1, 1}, {8, 8}, {24, 8}}) {
            Fixture f;
            edit ? f.edit_prompt() : f.text_prompt();
            f.spec.guidance.scale = 1.0;
            f.spec.guidance_train = flow::GuidanceTrain::none;
            f.spec.members = members, f.spec.micro_batch = micro_batch;
            f.keys.clear();
            for (int m = 0; m < members; ++m) f.keys.push_back(flow::sample_noise_key(1, 2, 3, m));
            const GroupTrajectory t = f.with_policy(dit::Keep::nothing, [&](GroupPolicy& p) { return p.sample(f.keys); });
            EXPECT_EQ(f.with_policy(dit::Keep::inputs, [&](GroupPolicy& p) { return p.replay(t); }), t.log_prob) << members << edit;
        }
}

TEST(GroupPolicy, ReplayWithOperandsInBf16) {
    const bool on_device = testing::test_device() != Device::cpu;
    for (const bool edit : {false, true}) {
        const auto sample = [](Fixture& one) {
            return one.with_policy(dit::Keep::nothing, [&](GroupPolicy& p) { return p.sample(one.keys); });
        };
        const auto prompt = [&](Fixture& one) { edit ? one.edit_prompt() : one.text_prompt(); };
        std::vector<float> exact;
        {  // one after the other: a device's products have the precision of the last pipeline
            Fixture fp32;
            prompt(fp32);
            exact = sample(fp32).latents;
        }
        Fixture f(ops::ProductPrecision::bf16);
        prompt(f);
        const pipeline::EncodedPrompt before = f.conditional;
        const GroupTrajectory t = sample(f);
        EXPECT_NE(t.latents, exact) << "products were not in bf16";
        for (int n : {1, 2})
            for (dit::Keep keep : {dit::Keep::nothing, dit::Keep::activations, dit::Keep::products, dit::Keep::branches, dit::Keep::inputs}) {
                set_threads(n);
                EXPECT_EQ(f.with_policy(keep, [&](GroupPolicy& p) { return p.replay(t); }), t.log_prob) << edit;
            }
        set_threads(1);
        EXPECT_EQ(f.conditional.states, before.states);  // what the caller holds is not rounded
        EXPECT_EQ(f.conditional.reference_latents, before.reference_latents);
    }
    if (on_device) ops::backend().set_product_precision(ops::ProductPrecision::fp32);
}

TEST(GroupPolicy, EverySizeReplaysByItsOwnSchedule) {
    Fixture f;
    std::set<float> first_steps;
    for (const dit::Grid target : {dit::Grid{4, 4}, {2, 6}, {6, 10}, {10, 6}}) {
        f.text_prompt();
        f.spec.target = target;
        f.spec.schedule = flow::make_schedule(f.model.schedule_config(), 6, target.tokens());
        first_steps.insert(f.spec.schedule.sigmas[1]);
        const GroupTrajectory t = f.with_policy(dit::Keep::nothing, [&](GroupPolicy& p) { return p.sample(f.keys); });
        EXPECT_EQ(t.latents.size(), static_cast<std::size_t>(f.spec.members * target.tokens() * f.model.dit().config().out_channels));
        for (const dit::Keep keep : {dit::Keep::nothing, dit::Keep::activations, dit::Keep::products, dit::Keep::branches, dit::Keep::inputs})
            EXPECT_EQ(f.with_policy(keep, [&](GroupPolicy& p) { return p.replay(t); }), t.log_prob) << target.height << "x" << target.width;
    }
    EXPECT_EQ(first_steps.size(), f.model.schedule_config().use_dynamic_shifting ? 3u : 1u) << "the shift follows the number of tokens";
}

INSTANTIATE_TEST_SUITE_P(All, Replay,
                         ::testing::Combine(::testing::Values(flow::GuidanceTrain::conditional, flow::GuidanceTrain::guided,
                                                              flow::GuidanceTrain::none),
                                            ::testing::Values(flow::Sampler::flow_sde, flow::Sampler::dance_sde, flow::Sampler::cps),
                                            ::testing::Bool()));

/// The surrogate's gradient against central differences through the whole model, in a random direction of the parameters.
void check_gradient(flow::GuidanceTrain train, bool edit) {
    Fixture f;
    edit ? f.edit_prompt() : f.text_prompt();
    f.spec.guidance_train = train;
    GroupTrajectory t = f.with_policy(dit::Keep::nothing, [&](GroupPolicy& p) { return p.sample(f.keys); });
    const std::vector<double> advantage{1.0, -0.5, 0.25, -2.0};
    // Unclipped, so that the loss is smooth; old log p moved off, so that the ratio is not 1.
    ObjectiveConfig objective;
    objective.clip = 1e9;
    for (std::size_t i = 0; i < t.log_prob.size(); ++i) t.log_prob[i] += 0.01f * static_cast<float>(i % 3);
    const nn::ParameterStore& weights = f.model.dit_weights();
    const Store gradients(f.model);
    f.with_policy(dit::Keep::activations, [&](GroupPolicy& p) { return p.train(objective, t, advantage, 1.0, gradients.values); });
    const std::vector<float> gradient = read(gradients.values.flat()), kept = read(weights.flat());
    // Along the gradient itself the loss changes most: the derivative is its norm.
    double norm = 0;
    for (const float g : gradient) norm += double(g) * g;
    norm = std::sqrt(norm);
    ASSERT_GT(norm, 0);
    const auto loss = [&](double step) {
        std::vector<float> moved = kept;
        for (std::size_t i = 0; i < moved.size(); ++i) moved[i] = static_cast<float>(kept[i] + step * gradient[i] / norm);
        write(moved, weights.flat());
        const auto now = f.with_policy(dit::Keep::nothing, [&](GroupPolicy& p) { return p.replay(t); });
        double sum = 0;
        for (std::size_t i = 0; i < now.size(); ++i)
            sum -= std::exp(double(now[i]) - t.log_prob[i]) * advantage[i / f.spec.trained_steps.size()];
        return sum;
    };
    const double step = 2e-3;
    const double slope = (8 * (loss(step) - loss(-step)) - (loss(2 * step) - loss(-2 * step))) / (12 * step);
    write(kept, weights.flat());
    EXPECT_NEAR(slope / norm, 1.0, 0.01);
}

TEST(GroupPolicy, GradientOfTheConditionalObjective) { check_gradient(flow::GuidanceTrain::conditional, false); }
TEST(GroupPolicy, GradientThroughAReference) { check_gradient(flow::GuidanceTrain::conditional, true); }
TEST(GroupPolicy, GradientThroughBothBranches) { check_gradient(flow::GuidanceTrain::guided, false); }
TEST(GroupPolicy, GradientWithoutGuidance) { check_gradient(flow::GuidanceTrain::none, true); }

/// The whole objective with a KL term or GRPO-Guard's ratio against central differences of the loss that train() reports.
void check_objective(const ObjectiveConfig& objective) {
    Fixture f;
    f.text_prompt();
    f.spec.guidance_train = flow::GuidanceTrain::none;
    if (objective.ratio_norm) f.spec.trained_steps = {2};
    const GroupTrajectory t = f.with_policy(dit::Keep::nothing, [&](GroupPolicy& p) { return p.sample(f.keys); });
    std::vector<float> base = f.with_policy(dit::Keep::nothing, [&](GroupPolicy& p) { return p.velocities(t); });
    for (std::size_t i = 0; i < base.size(); ++i) base[i] += 0.05f * static_cast<float>(i % 5);
    const std::vector<double> advantage{1.0, -0.5, 0.25, -2.0};
    const nn::ParameterStore& weights = f.model.dit_weights();
    const std::vector<float> kept = read(weights.flat());
    std::vector<float> gradient;
    const auto loss = [&](double step, double norm) {
        const Store gradients(f.model);
        std::vector<float> moved = kept;
        for (std::size_t i = 0; step != 0 && i < moved.size(); ++i) moved[i] = static_cast<float>(kept[i] + step * gradient[i] / norm);
        write(moved, weights.flat());
        // Steps weigh differently under the normalised ratio: one step alone makes its loss the sum that is reported.
        const auto stats = f.with_policy(dit::Keep::activations, [&](GroupPolicy& p) { return p.train(objective, t, advantage, 1.0, gradients.values, base); });
        write(kept, weights.flat());
        if (step == 0) gradient = read(gradients.values.flat());
        const double scale = objective.ratio_norm ? guard_weight(flow::transition(f.spec.sampler, f.spec.eta, f.spec.schedule.sigmas, f.spec.trained_steps[0])) : 1.0;
        return scale * stats.loss + objective.beta * stats.kl;
    };
    loss(0, 1);
    double norm = 0;
    for (const float g : gradient) norm += double(g) * g;
    norm = std::sqrt(norm);
    const double step = 2e-3, slope = (8 * (loss(step, norm) - loss(-step, norm)) - (loss(2 * step, norm) - loss(-2 * step, norm))) / (12 * step);
    EXPECT_NEAR(slope / norm, 1.0, 0.01);
}

TEST(GroupPolicy, GradientWithGaussianKl) { check_objective({1e9, false, KlKind::gaussian, 0.5}); }
TEST(GroupPolicy, GradientWithVelocityKl) { check_objective({1e9, false, KlKind::velocity, 0.5}); }

TEST(GroupPolicy, GradientWithTheNormalisedRatio) { check_objective({1e9, true}); }

TEST(GroupPolicy, ANegativePromptIsAsEncodedByItself) {
    Fixture f;
    const auto expect_same = [](const pipeline::EncodedPrompt& a, const pipeline::EncodedPrompt& b) {
        EXPECT_EQ(a.states, b.states);
        EXPECT_EQ(a.image_slot, b.image_slot);
        EXPECT_EQ(a.reference_latents, b.reference_latents);
        EXPECT_EQ(a.references, b.references);
        EXPECT_EQ(a.tokens, b.tokens);
    };
    f.edit_prompt();
    expect_same(f.model.encode_negative("", f.references, f.conditional), f.unconditional);
    f.text_prompt();
    for (int i = 0; i < 12; ++i) {
        const std::string text = i % 3 == 0 ? "" : "blurred " + std::to_string(i);
        expect_same(f.model.encode_negative(text, nullptr, f.conditional), f.model.encode(text, nullptr));
    }
}

/// What is not kept is made again to the same bits: in fp32 and with operands in bf16, both branches of guidance, with references, beside an adapter.
TEST(GroupPolicy, GradientsDoNotDependOnWhatIsKept) {
    for (const auto precision : {ops::ProductPrecision::fp32, ops::ProductPrecision::bf16})
        for (const bool is_adapted : {false, true}) {
            SCOPED_TRACE(fmt::format("{}, {}", precision == ops::ProductPrecision::fp32 ? "fp32" : "bf16", is_adapted ? "adapter" : "all weights"));
            Fixture f(precision, is_adapted);
            f.edit_prompt();
            f.spec.guidance_train = flow::GuidanceTrain::guided;
            f.spec.trained_steps = {2};
            f.spec.members = 2;
            f.keys.resize(2);
            const nn::LoraTable lora(f.model.dit().table(), {4, 8, {"transformer_blocks.*"}});
            if (is_adapted) {
                nn::LoraAdapter adapter(f.model.dit().table(), {4, 8, {"transformer_blocks.*"}});
                nn::initialise(adapter.store(), 5);
                const Tensor values = adapter.store().values().flat();
                for (std::int64_t i = 0; i < values.elements(); ++i) values.f32()[i] += 0.01f * static_cast<float>(i % 7);
                f.model.set_adapter(std::move(adapter));
            }
            const GroupTrajectory t = f.with_policy(dit::Keep::nothing, [&](GroupPolicy& p) { return p.sample(f.keys); });
            const std::vector<double> advantage{1.0, -0.5};
            std::vector<float> expected;
            for (const dit::Keep keep : {dit::Keep::activations, dit::Keep::products, dit::Keep::branches, dit::Keep::inputs}) {
                Workspace workspace("gradients");
                std::unique_ptr<nn::LoraStore> of_adapter;
                const Store of_all(f.model);
                if (is_adapted) of_adapter = std::make_unique<nn::LoraStore>(workspace.build([&](Arena& arena) { return nn::LoraStore(lora, arena, f.model.dit().device()); }));
                f.with_policy(keep, [&](GroupPolicy& p) {
                    return p.train({}, t, advantage, 1.0, is_adapted ? nn::ParameterStore(f.model.dit().table(), *of_adapter) : of_all.values);
                });
                const std::vector<float> found = read(is_adapted ? of_adapter->values().flat() : of_all.values.flat());
                if (expected.empty()) expected = found;
                EXPECT_EQ(found, expected) << static_cast<int>(keep);
            }
            EXPECT_TRUE(std::any_of(expected.begin(), expected.end(), [](float g) { return g != 0; }));
        }
    if (testing::test_device() != Device::cpu) ops::backend().set_product_precision(ops::ProductPrecision::fp32);
}

TEST(GroupPolicy, MembersMayShareTheirFirstNoise) {
    Fixture f;
    f.text_prompt();
    f.spec.shared_noise = true;
    f.spec.trained_steps = {2};
    const GroupTrajectory t = f.with_policy(dit::Keep::nothing, [&](GroupPolicy& p) { return p.sample(f.keys); });
    const std::size_t n = t.x.size() / f.keys.size();
    for (std::size_t m = 1; m < f.keys.size(); ++m) {
        EXPECT_TRUE(std::equal(t.x.begin(), t.x.begin() + static_cast<std::ptrdiff_t>(n), t.x.begin() + static_cast<std::ptrdiff_t>(m * n))) << "one state until the first SDE step";
        EXPECT_FALSE(std::equal(t.latents.begin(), t.latents.begin() + static_cast<std::ptrdiff_t>(n), t.latents.begin() + static_cast<std::ptrdiff_t>(m * n)));
    }
    EXPECT_EQ(f.with_policy(dit::Keep::nothing, [&](GroupPolicy& p) { return p.replay(t); }), t.log_prob);
}

TEST(GroupPolicy, TheNormalisedRatioNeedsTheTrainedPolicysMean) {
    Fixture f;
    f.text_prompt();
    const GroupTrajectory t = f.with_policy(dit::Keep::nothing, [&](GroupPolicy& p) { return p.sample(f.keys); });
    const Store gradients(f.model);
    const std::vector<double> advantage{1.0, -0.5, 0.25, -2.0};
    EXPECT_THROW(f.with_policy(dit::Keep::activations, [&](GroupPolicy& p) { return p.train({1e9, true}, t, advantage, 1.0, gradients.values); }), Error);
}

TEST(GroupPolicy, FirstUpdateHasRatioOneAndStepsImproveTheSurrogate) {
    Fixture f;
    f.text_prompt();
    const GroupTrajectory t = f.with_policy(dit::Keep::nothing, [&](GroupPolicy& p) { return p.sample(f.keys); });
    const nn::ParameterStore& weights = f.model.dit_weights();
    const std::int64_t size = weights.flat().elements();
    const Store gradients(f.model), m(f.model), v(f.model);
    const std::vector<double> advantage{1.5, -0.5, 0.0, -1.0};
    const std::vector<optim::ParameterRange> ranges{{0, size, false}};
    ObjectiveConfig objective;
    objective.clip = 0.2;
    double first = 0, last = 0;
    for (int update = 1; update <= 4; ++update) {
        clear(gradients.values.flat());
        const auto stats = f.with_policy(dit::Keep::inputs, [&](GroupPolicy& p) { return p.train(objective, t, advantage, 0.1, gradients.values); });
        EXPECT_EQ(stats.terms, 9);  // three members with an advantage, three steps
        if (update == 1) {
            EXPECT_EQ(stats.ratio, stats.terms);  // exactly 1 each
            first = stats.loss;
        }
        last = stats.loss;
        const DeviceScope scope(f.model.dit().device());
        optim::adamw_step({}, 1e-4, update, 1.0, ranges, gradients.span(), {weights.data(), std::size_t(size)}, m.span(), v.span());
    }
    EXPECT_LT(last, first);
}

/// A dimension that spreads ten times as much has no more say: after calibration the policy gradient keeps its direction within
/// one degree, where totals that are not normalised turn it by far more.
TEST(GroupPolicy, ADimensionScaledTenfoldKeepsTheDirection) {
    Fixture f;
    f.text_prompt();
    const GroupTrajectory t = f.with_policy(dit::Keep::nothing, [&](GroupPolicy& p) { return p.sample(f.keys); });
    const std::size_t members = f.keys.size(), dimensions = 3;
    Random random(random_key(3, RandomUse::test));
    std::vector<std::vector<float>> groups(12, std::vector<float>(members * dimensions));
    for (auto& scores : groups)
        for (float& score : scores) score = static_cast<float>(3 + 0.4 * random.normal());
    const std::vector<std::uint8_t> present(members * dimensions, 1);
    const auto scaled = [&](std::vector<float> scores, float by) {
        for (std::size_t i = 1; i < scores.size(); i += dimensions) scores[i] = 3 + by * (scores[i] - 3);
        return scores;
    };
    const auto gradient = [&](const std::vector<double>& advantage) {
        const Store gradients(f.model);
        f.with_policy(dit::Keep::activations, [&](GroupPolicy& p) { return p.train({}, t, advantage, 1.0, gradients.values); });
        return read(gradients.values.flat());
    };
    const auto calibrated = [&](float by) {
        SpreadCollector spread(static_cast<int>(dimensions));
        for (const auto& scores : groups) spread.add_group({}, static_cast<int>(members), scaled(scores, by), present);
        const auto weights = calibrate_weights(spread.covariance(), std::vector<double>{1, 1, 1}).weights;
        return gradient(group_advantage({}, static_cast<int>(members), scaled(groups[0], by), present, weights).advantage);
    };
    const auto plain = [&](float by) {
        std::vector<double> total(members);
        const auto scores = scaled(groups[0], by);
        for (std::size_t i = 0; i < scores.size(); ++i) total[i / dimensions] += scores[i];
        const double mean = std::accumulate(total.begin(), total.end(), 0.0) / static_cast<double>(members);
        for (double& each : total) each -= mean;
        return gradient(total);
    };
    const auto degrees = [](const std::vector<float>& a, const std::vector<float>& b) {
        double ab = 0, aa = 0, bb = 0;
        for (std::size_t i = 0; i < a.size(); ++i) {
            ab += double(a[i]) * b[i];
            aa += double(a[i]) * a[i];
            bb += double(b[i]) * b[i];
        }
        return std::acos(std::min(1.0, ab / std::sqrt(aa * bb))) * 180 / 3.14159265358979;
    };
    EXPECT_LT(degrees(calibrated(1), calibrated(10)), 1.0);
    EXPECT_GT(degrees(plain(1), plain(10)), 10.0);
}

TEST(GroupPolicy, RefusesGroupsThatDoNotDivide) {
    Fixture f;
    f.text_prompt();
    f.spec.micro_batch = 3;
    EXPECT_THROW(f.with_policy(dit::Keep::nothing, [](GroupPolicy&) { return 0; }), Error);
}

}  // namespace
}  // namespace atelier::rl
