// The student's trajectories, the teacher's velocities on them, and the distillation loss's
// gradient through the whole model.
#include "distill/student_group.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "../ops/test_device.hpp"
#include "../oracle/oracle_folder.hpp"
#include "core/numbers.hpp"
#include "flow/noise.hpp"

namespace atelier::distill {
namespace {

struct Fixture {
    Fixture() : model(testing::oracle_folder() / "pipeline" / "pipeline", {}, testing::test_device()) {
        spec.target = {4, 4};
        spec.schedule = model.schedule(5, spec.target.tokens());
        spec.members = 4;
        spec.micro_batch = 2;
        for (int m = 0; m < spec.members; ++m) keys.push_back(flow::sample_noise_key(1, 2, 3, m));
        conditional = model.encode("A red circle left of the blue star", nullptr);
        unconditional = model.encode("", nullptr);
    }
    template <typename Function>
    auto with_group(dit::Keep keep, Function f) {
        Workspace workspace("group");
        StudentGroup group = workspace.build([&](Arena& arena) {
            return StudentGroup(model.dit(), model.dit_weights(), conditional, &unconditional, spec, keep, arena);
        });
        return f(group);
    }
    pipeline::Pipeline model;
    StudentSpec spec;
    std::vector<RandomKey> keys;
    pipeline::EncodedPrompt conditional, unconditional;
};

TEST(StudentGroup, OwnVelocitiesLeadFromStateToState) {
    Fixture f;
    const auto t =
        f.with_group(dit::Keep::nothing, [&](StudentGroup& g) { return g.sample(f.keys); });
    const auto v =
        f.with_group(dit::Keep::nothing, [&](StudentGroup& g) { return g.velocities({}, t.x); });
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

TEST(StudentGroup, MicroBatchesDoNotChangeTrajectories) {
    Fixture f;
    const auto a =
        f.with_group(dit::Keep::nothing, [&](StudentGroup& g) { return g.sample(f.keys); });
    f.spec.micro_batch = 4;
    const auto b =
        f.with_group(dit::Keep::nothing, [&](StudentGroup& g) { return g.sample(f.keys); });
    double worst = 0;
    for (std::size_t i = 0; i < a.latents.size(); ++i)
        worst = std::max(worst, std::abs(double(a.latents[i]) - b.latents[i]));
    EXPECT_LE(worst, 1e-4);
}

TEST(StudentGroup, GuidanceOffIsTheConditionalVelocity) {
    Fixture f;
    const auto t =
        f.with_group(dit::Keep::nothing, [&](StudentGroup& g) { return g.sample(f.keys); });
    const auto plain =
        f.with_group(dit::Keep::nothing, [&](StudentGroup& g) { return g.velocities({}, t.x); });
    const auto guided = f.with_group(dit::Keep::nothing, [&](StudentGroup& g) {
        return g.velocities({2.0, false}, t.x);
    });
    EXPECT_NE(plain, guided);
}

class Loss : public ::testing::TestWithParam<LossKind> {};

TEST_P(Loss, GradientIsThatOfCentralDifferences) {
    Fixture f;
    const auto t =
        f.with_group(dit::Keep::nothing, [&](StudentGroup& g) { return g.sample(f.keys); });
    const auto teacher = f.with_group(dit::Keep::nothing, [&](StudentGroup& g) {
        return g.velocities({2.0, false}, t.x);
    });
    const nn::ParameterStore& weights = f.model.dit_weights();
    const std::int64_t size = weights.flat().elements();
    const double weight = 1.0 / (4 * 5);
    const auto loss = [&](std::vector<float>* gradient) {
        const Numbers there(size, f.model.dit().device());
        const nn::ParameterStore gradients(weights.table(), there.tensor());
        const auto stats = f.with_group(dit::Keep::activations, [&](StudentGroup& g) {
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
