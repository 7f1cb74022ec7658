// The student's trajectories, the teacher's velocities on them, and the distillation loss's
// gradient through the whole model.
#include "distill/student_states.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "../ops/test_device.hpp"
#include "../oracle/oracle_folder.hpp"
#include "core/numbers.hpp"
#include "core/parallel.hpp"
#include "distill/student_sampler.hpp"
#include "flow/noise.hpp"

namespace atelier::distill {
namespace {

using Prompts = std::vector<const pipeline::EncodedPrompt*>;

pipeline::Placement placement() {
    pipeline::Placement p(testing::test_device());
    p.weights_change = true;
    return p;
}

struct Fixture {
    Fixture() : model(testing::oracle_folder() / "pipeline" / "pipeline", {}, placement()) {
        spec.target = {4, 4};
        spec.schedule = model.schedule(5, spec.target.tokens());
        spec.members = 4;
        spec.micro_batch = 2;
        for (int m = 0; m < spec.members; ++m) keys.push_back(flow::sample_noise_key(1, 2, 3, m));
        conditional = model.encode("A red circle left of the blue star", nullptr);
        unconditional = model.encode("", nullptr);
    }
    std::vector<StudentTrajectory> sample(std::span<const pipeline::EncodedPrompt* const> prompts, std::span<const RandomKey> noise_keys) {
        Workspace workspace("trajectories");
        return workspace.build([&](Arena& arena) { return StudentSampler(model.dit(), model.dit_weights(), prompts, spec, arena); }).sample(noise_keys);
    }
    StudentTrajectory sample() { return sample(Prompts{&conditional}, keys).front(); }
    template <typename Function>
    auto with_states(dit::Keep keep, Function f) {
        Workspace workspace("states");
        StudentStates states = workspace.build([&](Arena& arena) {
            return StudentStates(model.dit(), model.dit_weights(), conditional, &unconditional, spec, keep, arena);
        });
        return f(states);
    }
    std::vector<float> velocities(const flow::Guidance& guidance, const std::vector<float>& x) {
        return with_states(dit::Keep::nothing, [&](StudentStates& s) { return s.velocities(guidance, x); });
    }
    pipeline::Pipeline model;
    StudentSpec spec;
    std::vector<RandomKey> keys;
    pipeline::EncodedPrompt conditional, unconditional;
};

TEST(Student, TheKlLossIsAMeanOverStepsThatHaveOne) {
    StudentSpec spec;
    spec.schedule.sigmas = {1.0f, 0.6f, 0.3f, 0.0f};
    spec.schedule.timesteps = {1000, 600, 300};
    spec.sampler = flow::Sampler::cps;  // its last step has no standard deviation
    EXPECT_EQ(spec.loss_steps(LossKind::kl), 2);
    EXPECT_EQ(spec.loss_steps(LossKind::velocity), 3);
    spec.sampler = flow::Sampler::ode;
    EXPECT_EQ(spec.loss_steps(LossKind::kl), 3);
}

TEST(Student, OwnVelocitiesLeadFromStateToState) {
    Fixture f;
    const auto t = f.sample();
    const auto v = f.velocities({}, t.x);
    const std::size_t n = t.latents.size() / 4, steps = 5;
    for (std::size_t i = 0; i < t.x.size(); ++i) {
        const std::size_t step = i / n % steps;
        const float delta = f.spec.schedule.sigmas[step + 1] - f.spec.schedule.sigmas[step];
        ASSERT_FLOAT_EQ(t.x_next[i], std::fma(delta, v[i], t.x[i])) << i;
    }
    for (std::size_t m = 0; m < 4; ++m)
        for (std::size_t i = 0; i < n; ++i)
            ASSERT_EQ(t.latents[m * n + i], t.x_next[(m * steps + steps - 1) * n + i]);
    for (const float p : t.log_prob)
        EXPECT_TRUE(std::isnan(p)) << "an ODE step has no log-probability";
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
    double worst = a.size() == b.size() ? 0 : INFINITY;
    for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) worst = std::max(worst, std::abs(double(a[i]) - b[i]));
    return worst;
}

TEST(Student, MicroBatchesDoNotChangeTrajectories) {
    Fixture f;
    const auto a = f.sample();
    const auto v = f.velocities({2.0}, a.x);
    for (const int together : {4, 20}) {
        f.spec.micro_batch = together;
        EXPECT_LE(largest_difference(f.sample().latents, a.latents), 1e-4);
        EXPECT_LE(largest_difference(f.velocities({2.0}, a.x), v), 1e-4);
    }
}

TEST(Student, PromptsAreDrawnTogetherAsAlone) {
    Fixture f;
    const auto other = f.model.encode("A cat", nullptr);
    f.spec.sampler = flow::Sampler::flow_sde;
    f.spec.micro_batch = 3 * f.spec.members;
    EXPECT_EQ(StudentSampler::prompts_together(f.spec), 3u);
    std::vector<RandomKey> keys = f.keys;
    for (int m = 0; m < f.spec.members; ++m) keys.push_back(flow::sample_noise_key(1, 2, 4, m));
    const auto together = f.sample(Prompts{&f.conditional, &other}, keys);
    ASSERT_EQ(together.size(), 2u);
    for (std::size_t p = 0; p < 2; ++p) {
        const auto alone = f.sample(Prompts{p == 0 ? &f.conditional : &other}, std::span(keys).subspan(p * 4, 4)).front();
        // Rows of a product have the same bits in any company on the CPU.
        if (f.model.dit().device() == Device::cpu) {
            EXPECT_EQ(together[p].x, alone.x);
            EXPECT_EQ(together[p].x_next, alone.x_next);
            EXPECT_EQ(together[p].log_prob, alone.log_prob);
            EXPECT_EQ(together[p].latents, alone.latents);
        }
        EXPECT_LE(largest_difference(together[p].latents, alone.latents), 1e-4);
        EXPECT_EQ(together[p].noise_key, alone.noise_key);
    }
    EXPECT_GT(largest_difference(together[0].latents, together[1].latents), 1e-2);
}

/// On CPUs threads take a prompt each, of whatever length, and share the buffers.
TEST(Student, ThreadsWithPromptsOfDifferentLengthsStayApart) {
    Fixture f;
    if (f.model.dit().device() != Device::cpu) GTEST_SKIP() << "threads of the CPU";
    std::string text;
    for (int i = 0; i < 40; ++i) text += "a red circle left of the blue star, ";
    const auto cat = f.model.encode("A cat", nullptr), stars = f.model.encode(text, nullptr);
    const Prompts prompts{&stars, &cat, &stars, &cat};
    f.spec.micro_batch = 4 * f.spec.members;
    std::vector<RandomKey> keys;
    for (int m = 0; m < 4 * f.spec.members; ++m) keys.push_back(flow::sample_noise_key(1, 2, 4, m));
    const auto one_thread = f.sample(prompts, keys);
    for (const int threads : {2, 4}) {
        set_threads(threads);
        for (int run = 0; run < 10; ++run) {
            const auto again = f.sample(prompts, keys);
            for (std::size_t p = 0; p < prompts.size(); ++p) ASSERT_EQ(again[p].x_next, one_thread[p].x_next) << threads << " threads, prompt " << p;
        }
    }
    set_threads(1);
}

TEST(Student, GuidanceOffIsTheConditionalVelocity) {
    Fixture f;
    const auto t = f.sample();
    EXPECT_NE(f.velocities({}, t.x), f.velocities({2.0, false}, t.x));
}

class Loss : public ::testing::TestWithParam<LossKind> {};

TEST_P(Loss, GradientIsThatOfCentralDifferences) {
    Fixture f;
    const auto t = f.sample();
    const auto teacher = f.velocities({2.0, false}, t.x);
    const nn::ParameterStore& weights = f.model.dit_weights();
    const std::int64_t size = weights.flat().elements();
    const double weight = 1.0 / (4 * 5);
    const auto loss = [&](std::vector<float>* gradient) {
        const Numbers there(size, f.model.dit().device());
        const nn::ParameterStore gradients(weights.table(), there.tensor());
        const auto stats = f.with_states(dit::Keep::activations, [&](StudentStates& g) {
            return g.train(GetParam(), t.x, teacher, weight, gradients);
        });
        if (gradient != nullptr) {
            gradient->resize(static_cast<std::size_t>(size));
            transfer(there.tensor(), Tensor::of(gradient->data(), {size}));
        }
        EXPECT_GT(stats.terms, 0);
        return stats.loss * weight;
    };
    std::vector<float> gradient;
    const double at = loss(&gradient);
    EXPECT_GT(at, 0);
    // Along the gradient itself: the slope is its squared norm.
    double square = 0;
    for (const float g : gradient) square += double(g) * g;
    const double step = 2e-3 / std::sqrt(square);
    const Numbers before(weights.flat(), Device::cpu), changed(size);
    const auto moved = [&](double by) {
        for (std::int64_t i = 0; i < size; ++i)
            changed.data()[i] = static_cast<float>(before.data()[i] + by * gradient[static_cast<std::size_t>(i)]);
        transfer(changed.tensor(), weights.flat());
        return loss(nullptr);
    };
    const double slope = (moved(step) - moved(-step)) / (2 * step);
    EXPECT_NEAR(slope / square, 1.0, 0.01);
}

INSTANTIATE_TEST_SUITE_P(Kinds, Loss, ::testing::Values(LossKind::velocity, LossKind::kl),
                         [](const auto& info) { return std::string(name_of(info.param)); });

}  // namespace
}  // namespace atelier::distill
