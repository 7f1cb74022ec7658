// Adapters: what is adapted, files in both layouts, damage, and the objective's gradient through a whole group.
#include "nn/lora_file.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "../oracle/oracle_folder.hpp"
#include "flow/noise.hpp"
#include "nn/linear.hpp"
#include "rl/group_policy.hpp"

namespace atelier::nn {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using ::testing::HasSubstr;

ParameterTable small_model() {
    ParameterTable table;
    table.add({"blocks.0.to_q.weight", {6, 5}});
    table.add({"blocks.0.norm.weight", {6}});
    table.add({"blocks.0.mlp.weight", {7, 6}});
    table.add({"blocks.1.to_q.weight", {6, 5}});
    table.add({"head.to_q_out.weight", {4, 6}});
    return table;
}

TEST(LoraTargets, AreGlobsOrEndsOfNames) {
    const ParameterTable model = small_model();
    const auto rows = [&](std::vector<std::string> targets) { return LoraTable(model, {2, 4, std::move(targets)}).adapted(); };
    EXPECT_THAT(rows({"to_q"}), ::testing::ElementsAre(0, 3)) << "the end of a name, from a dot on";
    EXPECT_THAT(rows({"blocks.*"}), ::testing::ElementsAre(0, 2, 3)) << "matrices only";
    EXPECT_THAT(rows({"*.?.to_q", "mlp"}), ::testing::ElementsAre(0, 2, 3));
    EXPECT_THAT(rows({"*to_q*"}), ::testing::ElementsAre(0, 3, 4));
    const LoraTable table(model, {2, 4, {"mlp"}});
    EXPECT_EQ(table.scale(), 2.0f);
    EXPECT_EQ(table.table().count(), 2 * 6 + 7 * 2);
    EXPECT_EQ(table.find(1), -1);
    for (const LoraConfig& bad : {LoraConfig{0, 1, {"mlp"}}, LoraConfig{2, 0, {"mlp"}}, LoraConfig{2, 1, {"mlp", "to_k"}}, LoraConfig{7, 1, {"mlp"}},
                                  LoraConfig{2, 1, {}}, LoraConfig{2, 1, {"norm"}}})
        EXPECT_THROW(LoraTable(model, bad), Error);
}

class LoraFile : public ::testing::Test {
  protected:
    void SetUp() override {
        directory_ = fs::temp_directory_path() / ("atelier-lora-" + std::to_string(getpid()) + "-" +
                                                  ::testing::UnitTest::GetInstance()->current_test_info()->name());
        fs::create_directories(directory_);
        adapter_ = std::make_unique<LoraAdapter>(model_, LoraConfig{2, 3, {"to_q", "mlp"}});
        const ParameterStore& values = adapter_->store().values();
        for (std::int64_t i = 0; i < values.flat().elements(); ++i) values.data()[i] = 0.25f * static_cast<float>(i + 1);
    }
    void TearDown() override { fs::remove_all(directory_); }
    std::string refusal(const fs::path& path) {
        try {
            load_lora(path, model_);
        } catch (const Error& e) {
            EXPECT_EQ(e.kind(), ErrorKind::input) << e.what();
            return e.message();
        }
        return "(no error)";
    }
    /// The adapter's file, changed.
    template <typename Function>
    std::string with(Function change) {
        save_lora(adapter_->store(), directory_, LoraLayout::diffusers);
        std::map<std::string, std::pair<std::vector<float>, Shape>> tensors;
        std::map<std::string, std::string> metadata;
        {
            const auto file = io::Safetensors::open(directory_ / lora_file_name);
            metadata = file.metadata();
            for (const auto& [name, t] : file.tensors()) tensors[name] = {file.floats(name), t.shape};
        }
        Json settings = Json::parse(metadata.at("lora_adapter_metadata"));
        change(tensors, settings);
        metadata["lora_adapter_metadata"] = settings.dump();
        if (settings.is_null()) metadata.erase("lora_adapter_metadata");
        std::vector<io::TensorToWrite> list;
        for (auto& [name, t] : tensors) list.push_back({name, Tensor::of(t.first.data(), t.second), DType::f32});
        io::write_safetensors(directory_ / lora_file_name, list, metadata);
        return refusal(directory_ / lora_file_name);
    }
    ParameterTable model_ = small_model();
    std::unique_ptr<LoraAdapter> adapter_;
    fs::path directory_;
};

TEST_F(LoraFile, BothLayoutsComeBackAsTheyWere) {
    for (const LoraLayout layout : {LoraLayout::diffusers, LoraLayout::peft}) {
        const fs::path to = directory_ / (layout == LoraLayout::peft ? "peft" : "diffusers");
        fs::create_directories(to);
        const auto names = save_lora(adapter_->store(), to, layout);
        for (const fs::path& path : {to, to / names[0]}) {
            const LoraAdapter again = load_lora(path, model_);
            EXPECT_EQ(again.table().rank(), 2);
            EXPECT_EQ(again.table().config().alpha, 3);
            EXPECT_EQ(again.table().adapted(), adapter_->table().adapted());
            const Tensor a = again.store().values().flat(), b = adapter_->store().values().flat();
            ASSERT_EQ(a.elements(), b.elements());
            for (int row = 0; row < again.table().table().size(); ++row)
                EXPECT_EQ(std::memcmp(again.store().values()[row].raw(), adapter_->store().values()[row].raw(), again.store().values()[row].bytes()), 0);
        }
    }
}

TEST_F(LoraFile, RefusesWhatDoesNotFit) {
    EXPECT_EQ(with([](auto&, Json&) {}), "(no error)");
    const std::string a = "transformer.blocks.0.mlp.lora_A.weight", b = "transformer.blocks.0.mlp.lora_B.weight";
    EXPECT_THAT(with([&](auto& t, Json&) { t.erase(b); }), HasSubstr("stands without " + b));
    EXPECT_THAT(with([&](auto& t, Json&) { t.erase(a); }), HasSubstr("stands without " + a));
    EXPECT_THAT(with([&](auto& t, Json&) {
                    t["transformer.blocks.9.mlp.lora_A.weight"] = t[a], t["transformer.blocks.9.mlp.lora_B.weight"] = t[b];
                }),
                HasSubstr("no blocks.9.mlp.weight to adapt: the adapter is of another architecture"));
    EXPECT_THAT(with([&](auto& t, Json&) { t[a] = {std::vector<float>(3 * 6), {3, 6}}, t[b] = {std::vector<float>(7 * 3), {7, 3}}; }),
                HasSubstr("adapts a matrix [7, 6] at rank 2, found A [3, 6] and B [7, 3]"));
    EXPECT_THAT(with([&](auto& t, Json&) { t[a].second = {6, 2}; }), HasSubstr("found A [6, 2]"));
    EXPECT_THAT(with([](auto&, Json& s) { s["transformer.r"] = 4; }), HasSubstr("at rank 4"));
    EXPECT_THAT(with([&](auto& t, Json&) { t[a].first[3] = NAN; }), HasSubstr("holds nan at element 3"));
    EXPECT_THAT(with([&](auto& t, Json&) { t["transformer.blocks.0.mlp.bias"] = t[a]; }), HasSubstr("is no part of a LoRA adapter"));
    EXPECT_THAT(with([](auto&, Json& s) { s.erase("transformer.lora_alpha"); }), HasSubstr("no positive numbers r and lora_alpha"));
    EXPECT_THAT(with([](auto&, Json& s) { s["transformer.r"] = 0; }), HasSubstr("no positive numbers r and lora_alpha"));
    EXPECT_THAT(with([](auto&, Json& s) { s = nullptr; }), HasSubstr("so rank and alpha are unknown"));
    EXPECT_THAT(with([](auto&, Json& s) { s["transformer.use_dora"] = true; }), HasSubstr("use_dora = true is not supported"));
    EXPECT_THAT(with([](auto&, Json& s) { s["transformer.rank_pattern"] = {{"mlp", 4}}; }), HasSubstr("rank_pattern"));
    EXPECT_THAT(refusal(directory_ / "none.safetensors"), HasSubstr("cannot open"));
    fs::create_directories(directory_ / "empty");
    EXPECT_THAT(refusal(directory_ / "empty"), HasSubstr("holds neither"));
}

TEST(LoraRequest, IsAFileAndAScale) {
    EXPECT_EQ(parse_lora_request("a.safetensors").scale, 1.0f);
    EXPECT_EQ(parse_lora_request("a.safetensors:0.5").scale, 0.5f);
    EXPECT_EQ(parse_lora_request("a:b:-2").path, "a:b");
    EXPECT_THROW(parse_lora_request("a.safetensors:much"), Error);
    EXPECT_THROW(parse_lora_request("a.safetensors:0.5x"), Error);
}

// More rows than go through an adapter at a time; both products beside their definition in fp64.
TEST(LoraLinear, IsTheMatrixWithTheAdapterAdded) {
    const ParameterTable model = small_model();
    Arena arena("model", static_cast<std::size_t>(model.flat_size()) * 4);
    const ParameterStore base(model, arena);
    initialise(base, 1);
    const LoraAdapter adapter(model, {2, 3, {"mlp"}}), gradients(model, {2, 3, {"mlp"}});
    initialise(adapter.store(), 2);
    for (std::int64_t i = 0; i < 14; ++i) adapter.store().b(2).f32()[i] = 0.1f * static_cast<float>(i - 5);
    const ParameterStore weights = base.with_lora(&adapter.store());
    const std::int64_t rows = LoraStore::chunk + 37;
    std::vector<float> x(static_cast<std::size_t>(rows * 6)), y(static_cast<std::size_t>(rows * 7)), dy(y.size()), dx(x.size(), 99.0f);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<float>(i));
    for (std::size_t i = 0; i < dy.size(); ++i) dy[i] = std::cos(static_cast<float>(3 * i));
    project(weights, 2, Tensor::of(x.data(), {rows, 6}), Tensor::of(y.data(), {rows, 7}));
    project_backward(weights, ParameterStore(model, gradients.store()), 2, Tensor::of(x.data(), {rows, 6}), Tensor::of(dy.data(), {rows, 7}),
                     Tensor::of(dx.data(), {rows, 6}));
    const float *w = base[2].f32(), *a = adapter.store().a(2).f32(), *b = adapter.store().b(2).f32();
    const double scale = 1.5;
    const auto effective = [&](std::int64_t i, std::int64_t j) {
        return w[i * 6 + j] + scale * (double(b[i * 2]) * a[j] + double(b[i * 2 + 1]) * a[6 + j]);
    };
    std::vector<double> dw(42);
    for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t i = 0; i < 7; ++i) {
            double expected = 0;
            for (std::int64_t j = 0; j < 6; ++j) {
                expected += effective(i, j) * x[r * 6 + j];
                dw[static_cast<std::size_t>(i * 6 + j)] += double(dy[r * 7 + i]) * x[r * 6 + j];
            }
            ASSERT_NEAR(y[r * 7 + i], expected, 1e-5);
        }
    for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t j = 0; j < 6; ++j) {
            double expected = 0;
            for (std::int64_t i = 0; i < 7; ++i) expected += effective(i, j) * dy[r * 7 + i];
            ASSERT_NEAR(dx[r * 6 + j], expected, 1e-5);
        }
    for (std::int64_t k = 0; k < 2; ++k) {
        for (std::int64_t j = 0; j < 6; ++j) {
            double expected = 0;
            for (std::int64_t i = 0; i < 7; ++i) expected += scale * b[i * 2 + k] * dw[static_cast<std::size_t>(i * 6 + j)];
            EXPECT_NEAR(gradients.store().a(2).f32()[k * 6 + j], expected, 1e-3);
        }
        for (std::int64_t i = 0; i < 7; ++i) {
            double expected = 0;
            for (std::int64_t j = 0; j < 6; ++j) expected += scale * a[k * 6 + j] * dw[static_cast<std::size_t>(i * 6 + j)];
            EXPECT_NEAR(gradients.store().b(2).f32()[i * 2 + k], expected, 1e-3);
        }
    }
}

/// The surrogate's gradient of an adapter alone against central differences of the adapter through the whole model; with the adapter off
/// the policy is the base, bit for bit.
TEST(LoraTraining, GradientOfAGroupsObjective) {
    pipeline::Pipeline model(testing::oracle_folder() / "pipeline" / "pipeline");
    const auto prompt = model.encode("A red circle left of the blue star", nullptr);
    rl::SamplingSpec spec;
    spec.target = {4, 4};
    spec.schedule = model.schedule(6, spec.target.tokens());
    spec.trained_steps = {0, 2, 3};
    spec.guidance_train = flow::GuidanceTrain::none;
    spec.members = 4;
    spec.micro_batch = 2;
    std::vector<RandomKey> keys;
    for (int m = 0; m < spec.members; ++m) keys.push_back(flow::sample_noise_key(1, 2, 3, static_cast<std::uint64_t>(m)));
    const auto with_policy = [&](const ParameterStore& weights, dit::Keep keep, auto f) {
        Workspace workspace("group");
        rl::GroupPolicy policy = workspace.build(
            [&](Arena& arena) { return rl::GroupPolicy(model.dit(), weights, prompt, nullptr, spec, keep, arena); });
        return f(policy);
    };
    const ParameterStore base = model.dit_weights();
    rl::GroupTrajectory t = with_policy(base, dit::Keep::nothing, [&](auto& p) { return p.sample(keys); });

    LoraAdapter fresh(model.dit().table(), {4, 8, {"transformer_blocks.*"}});
    initialise(fresh.store(), 5);
    model.set_adapter(std::move(fresh));
    const LoraStore& adapter = model.adapter()->store();
    EXPECT_EQ(with_policy(model.dit_weights(), dit::Keep::nothing, [&](auto& p) { return p.replay(t); }), t.log_prob)
        << "a new adapter changes nothing";
    const std::int64_t size = adapter.values().flat().elements();
    std::vector<float> noise(static_cast<std::size_t>(size));
    fill_normal(random_key(9, RandomUse::parameter_init, 1), noise);
    for (std::int64_t i = 0; i < size; ++i) adapter.values().data()[i] += 0.05f * noise[static_cast<std::size_t>(i)];
    EXPECT_NE(with_policy(model.dit_weights(), dit::Keep::nothing, [&](auto& p) { return p.replay(t); }), t.log_prob);
    EXPECT_EQ(with_policy(model.dit_weights().with_lora(nullptr), dit::Keep::nothing, [&](auto& p) { return p.replay(t); }), t.log_prob)
        << "with the adapter off the policy is the base";

    const std::vector<double> advantage{1.0, -0.5, 0.25, -2.0};
    rl::ObjectiveConfig objective;
    objective.clip = 1e9;
    const LoraAdapter gradients(model.dit().table(), model.adapter()->table().config());
    const float* g = gradients.store().values().data();
    for (const dit::Keep keep : {dit::Keep::activations, dit::Keep::inputs}) {
        std::fill_n(gradients.store().values().data(), size, 0.0f);
        with_policy(model.dit_weights(), keep, [&](auto& p) {
            return p.train(objective, t, advantage, 1.0, ParameterStore(model.dit().table(), gradients.store()));
        });
    }
    double norm = 0;
    for (std::int64_t i = 0; i < size; ++i) norm += double(g[i]) * g[i];
    norm = std::sqrt(norm);
    ASSERT_GT(norm, 0);
    float* values = adapter.values().data();
    const std::vector<float> kept(values, values + size);
    const auto loss = [&](double step) {
        for (std::int64_t i = 0; i < size; ++i) values[i] = static_cast<float>(kept[static_cast<std::size_t>(i)] + step * g[i] / norm);
        const auto now = with_policy(model.dit_weights(), dit::Keep::nothing, [&](auto& p) { return p.replay(t); });
        double sum = 0;
        for (std::size_t i = 0; i < now.size(); ++i) sum -= std::exp(double(now[i]) - t.log_prob[i]) * advantage[i / spec.trained_steps.size()];
        return sum;
    };
    const double step = 5e-3;
    const double slope = (8 * (loss(step) - loss(-step)) - (loss(2 * step) - loss(-2 * step))) / (12 * step);
    EXPECT_NEAR(slope / norm, 1.0, 0.01);
}

}  // namespace
}  // namespace atelier::nn
