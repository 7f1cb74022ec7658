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
// Named in the lambdas below: in generic ones Clang 14 forgets the destructor of a braced value that is assigned (a leak).
using Tensors = std::map<std::string, std::pair<std::vector<float>, Shape>>;

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
    EXPECT_EQ(table.scale(2), 2.0f);
    EXPECT_EQ(table.text(), "rank 2, alpha 4 for 1 matrices");
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
        Tensors tensors;
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
            EXPECT_EQ(again.table().sizes(), adapter_->table().sizes());
            const Tensor a = again.store().values().flat(), b = adapter_->store().values().flat();
            ASSERT_EQ(a.elements(), b.elements());
            for (int row = 0; row < again.table().table().size(); ++row)
                EXPECT_EQ(std::memcmp(again.store().values()[row].raw(), adapter_->store().values()[row].raw(), again.store().values()[row].bytes()), 0);
        }
    }
}

TEST_F(LoraFile, RefusesWhatDoesNotFit) {
    EXPECT_EQ(with([](Tensors&, Json&) {}), "(no error)");
    const std::string a = "transformer.blocks.0.mlp.lora_A.weight", b = "transformer.blocks.0.mlp.lora_B.weight";
    EXPECT_THAT(with([&](Tensors& t, Json&) { t.erase(b); }), HasSubstr("stands without " + b));
    EXPECT_THAT(with([&](Tensors& t, Json&) { t.erase(a); }), HasSubstr("stands without " + a));
    EXPECT_THAT(with([&](Tensors& t, Json&) {
                    t["transformer.blocks.9.mlp.lora_A.weight"] = t[a], t["transformer.blocks.9.mlp.lora_B.weight"] = t[b];
                }),
                HasSubstr("no blocks.9.mlp.weight to adapt: the adapter is of another architecture"));
    EXPECT_THAT(with([&](Tensors& t, Json&) { t[a] = {std::vector<float>(3 * 6), {3, 6}}, t[b] = {std::vector<float>(7 * 3), {7, 3}}; }),
                HasSubstr("blocks.0.mlp has rank 2 by the configuration, found A [3, 6] and B [7, 3]"));
    EXPECT_THAT(with([&](Tensors& t, Json&) { t[a].second = {6, 2}; }), HasSubstr("found A [6, 2]"));
    EXPECT_THAT(with([&](Tensors& t, Json&) { t[a] = {std::vector<float>(2 * 5), {2, 5}}; }), HasSubstr("adapts a matrix [7, 6], found A [2, 5]"));
    EXPECT_THAT(with([](Tensors&, Json& s) { s["transformer.r"] = 4; }), HasSubstr("has rank 4 by the configuration"));
    EXPECT_THAT(with([&](Tensors& t, Json&) { t[a].first[3] = NAN; }), HasSubstr("holds nan at element 3"));
    EXPECT_THAT(with([&](Tensors& t, Json&) { t["transformer.blocks.0.mlp.bias"] = t[a]; }), HasSubstr("is no part of a LoRA adapter"));
    EXPECT_THAT(with([](Tensors&, Json& s) { s.erase("transformer.lora_alpha"); }), HasSubstr("no positive numbers r and lora_alpha"));
    EXPECT_THAT(with([](Tensors&, Json& s) { s["transformer.r"] = 0; }), HasSubstr("no positive numbers r and lora_alpha"));
    EXPECT_THAT(with([](Tensors& t, Json& s) {
                    s = nullptr;
                    std::map<std::string, std::pair<std::vector<float>, Shape>> renamed;
                    for (auto& [name, v] : t) renamed["base_model.model." + name.substr(12)] = v;
                    t = renamed;
                }),
                HasSubstr("so alpha is unknown"));
    EXPECT_THAT(with([](Tensors&, Json& s) { s["transformer.use_dora"] = true; }), HasSubstr("use_dora = true is not supported"));
    EXPECT_THAT(with([](Tensors&, Json& s) { s["transformer.rank_pattern"] = {{"mlp", 4}}; }), HasSubstr("blocks.0.mlp has rank 4"));
    EXPECT_THAT(with([](Tensors&, Json& s) { s["transformer.rank_pattern"] = {{"mlp", 0}}; }), HasSubstr("must give positive numbers"));
    EXPECT_THAT(with([](Tensors&, Json& s) { s["transformer.alpha_pattern"] = {{"ml(p", 4}}; }), HasSubstr("pattern ml(p is no regular expression"));
    EXPECT_THAT(with([](Tensors&, Json& s) { s["transformer.alpha_pattern"] = {{"((\\w|.)*)*[xz]", 4}}; }), HasSubstr("failed on blocks.0"));
    EXPECT_THAT(with([](Tensors&, Json& s) { s["transformer.alpha_pattern"] = {4}; }), HasSubstr("must be an object"));
    EXPECT_THAT(with([](Tensors& t, Json&) { t["transformer.blocks.0.mlp.alpha"] = {{1.0f}, {}}; }), HasSubstr("which of the two holds is not said"));
    EXPECT_THAT(with([](Tensors& t, Json& s) { s = nullptr, t["transformer.blocks.0.mlp.alpha"] = {{-1.0f}, {}}; }), HasSubstr("must be positive"));
    EXPECT_THAT(with([](Tensors& t, Json& s) { s = nullptr, t["transformer.blocks.0.mlp.alpha"] = {{1.0f, 2.0f}, {2}}; }), HasSubstr("must hold one number"));
    EXPECT_THAT(with([](Tensors& t, Json& s) { s = nullptr, t["transformer.blocks.1.mlp.alpha"] = {{1.0f}, {}}; }), HasSubstr("belongs to no module"));
    EXPECT_THAT(with([&](Tensors& t, Json& s) {
                    s = nullptr, t["transformer.blocks.0.mlp.lora_down.weight"] = t[a], t["transformer.blocks.0.mlp.lora_up.weight"] = t[b];
                }),
                HasSubstr("blocks.0.mlp is adapted twice"));
    EXPECT_THAT(refusal(directory_ / "none.safetensors"), HasSubstr("cannot open"));
    fs::create_directories(directory_ / "empty");
    EXPECT_THAT(refusal(directory_ / "empty"), HasSubstr("holds neither"));
}

// What pipe.save_lora_weights() writes without a configuration, and with tensors for alpha: read as diffusers 0.42 reads it.
TEST_F(LoraFile, WithoutAConfigurationTheShapesSayTheRank) {
    const auto sizes = [&] {
        const auto all = load_lora(directory_, model_).table().sizes();
        return std::vector<LoraSize>{all[0], all[2], all[3]};
    };
    const std::string a = "transformer.blocks.0.mlp.lora_A.weight", b = "transformer.blocks.0.mlp.lora_B.weight";
    EXPECT_EQ(with([](Tensors&, Json& s) { s = nullptr; }), "(no error)");
    EXPECT_THAT(sizes(), ::testing::Each(LoraSize{2, 2}));
    const auto wider = [&](auto& t) { t[a] = {std::vector<float>(3 * 6, 1.0f), {3, 6}}, t[b] = {std::vector<float>(7 * 3, 1.0f), {7, 3}}; };
    EXPECT_EQ(with([&](Tensors& t, Json& s) { s = nullptr, wider(t); }), "(no error)");
    EXPECT_THAT(sizes(), ::testing::ElementsAre(LoraSize{2, 2}, LoraSize{3, 3}, LoraSize{2, 2}));
    EXPECT_EQ(with([&](Tensors& t, Json& s) {
                  s = nullptr;
                  t["transformer.blocks.0.mlp.alpha"] = {{0.5f}, {}};
                  std::map<std::string, std::pair<std::vector<float>, Shape>> renamed;
                  for (auto& [name, v] : t) {
                      std::string other = name;
                      if (const auto at = other.find("lora_A"); at != std::string::npos) other.replace(at, 6, "lora_down");
                      if (const auto at = other.find("lora_B"); at != std::string::npos) other.replace(at, 6, "lora_up");
                      renamed["diffusion_model." + other.substr(12)] = v;
                  }
                  t = renamed;
              }),
              "(no error)");
    EXPECT_THAT(sizes(), ::testing::ElementsAre(LoraSize{2, 2}, LoraSize{2, 0.5}, LoraSize{2, 2}));
}

// Patterns as PEFT matches them: ends of names from a dot on, the first that matches; sqrt(rank) in the scale of rsLoRA.
TEST_F(LoraFile, PatternsGiveMatricesRanksAndAlphasOfTheirOwn) {
    const std::string a = "transformer.blocks.0.mlp.lora_A.weight", b = "transformer.blocks.0.mlp.lora_B.weight";
    const auto change = [&](Tensors& t, Json& s) {
        t[a] = {std::vector<float>(9 * 6, 1.0f), {9, 6}}, t[b] = {std::vector<float>(7 * 9, 2.0f), {7, 9}};  // a rank above the matrix's own
        s["transformer.rank_pattern"] = {{"mlp", 9}, {"lp", 5}};
        s["transformer.alpha_pattern"] = {{"^blocks.1.to_q", 6}, {"blocks.[01].to_q", 7}, {"to_", 9}};
    };
    EXPECT_EQ(with(change), "(no error)");
    const LoraAdapter adapter = load_lora(directory_, model_);
    const std::vector<LoraSize> expected{{2, 7}, {}, {9, 3}, {2, 6}, {}};
    EXPECT_EQ(adapter.table().sizes(), expected);
    EXPECT_EQ(adapter.table().text(), "rank 2 to 9, alpha 3 to 7 for 3 matrices");
    for (const LoraLayout layout : {LoraLayout::diffusers, LoraLayout::peft}) {
        const fs::path to = directory_ / (layout == LoraLayout::peft ? "peft" : "diffusers");
        fs::create_directories(to);
        save_lora(adapter.store(), to, layout);
        const LoraAdapter again = load_lora(to, model_);
        EXPECT_EQ(again.table().sizes(), expected);
        EXPECT_EQ(std::memcmp(again.store().values().flat().raw(), adapter.store().values().flat().raw(), adapter.store().values().flat().bytes()), 0);
    }
    std::vector<float> w(42, 0.0f);
    merge_lora(adapter.store(), 2, 1.0f, w.data());
    for (const float v : w) EXPECT_NEAR(v, 3.0 / 9 * 9 * 2, 1e-5);
    EXPECT_EQ(with([&](Tensors& t, Json& s) { change(t, s), s["transformer.use_rslora"] = true; }), "(no error)");
    EXPECT_EQ(load_lora(directory_, model_).table().sizes()[2], (LoraSize{9, 9}));
}

TEST_F(LoraFile, RefusesOtherDtypes) {
    std::vector<std::int32_t> integers(14);
    std::vector<float> floats(12);
    for (const DType dtype : {DType::i32, DType::f32}) {
        const Tensor up(integers.data(), dtype, {7, 2});
        io::write_safetensors(directory_ / lora_file_name, {{"transformer.blocks.0.mlp.lora_A.weight", Tensor::of(floats.data(), {2, 6}), DType::f32},
                                                            {"transformer.blocks.0.mlp.lora_B.weight", up, dtype}});
        EXPECT_THAT(refusal(directory_), HasSubstr(dtype == DType::f32 ? "(no error)" : "blocks.0.mlp.lora_B.weight must hold f32, bf16 or f16, found i32"));
    }
}

TEST_F(LoraFile, RequestIsAFileAndAScale) {
    const std::string file = directory_ / "a.safetensors", other = directory_ / "a:b";
    std::ofstream(file).put(' ');
    std::ofstream(other).put(' ');
    EXPECT_EQ(parse_lora_request(file).scale, 1.0f);
    EXPECT_EQ(parse_lora_request(file + ":0.5").scale, 0.5f);
    EXPECT_EQ(parse_lora_request(other + ":-2").path, other);
    EXPECT_EQ(parse_lora_request(other).scale, 1.0f);
    const auto refused = [](const std::string& text) {
        try {
            parse_lora_request(text);
        } catch (const Error& e) {
            return e.message();
        }
        return std::string("(no error)");
    };
    EXPECT_THAT(refused(file + ":much"), HasSubstr("must be a scale"));
    EXPECT_THAT(refused(file + ":0.5x"), HasSubstr("must be a scale"));
    EXPECT_THAT(refused("absent.safetensors:0.5"), HasSubstr("--lora absent.safetensors:0.5: absent.safetensors is missing"));
}

// More rows than go through an adapter at a time; both products beside their definition in fp64.
TEST(LoraLinear, IsTheMatrixWithTheAdapterAdded) {
    const ParameterTable model = small_model();
    Arena arena("model", static_cast<std::size_t>(model.flat_size()) * 4);
    const ParameterStore base(model, arena);
    initialise(base, 1);
    // The room for inner numbers is another matrix's, of a larger rank.
    const LoraTable table(model, std::vector<LoraSize>{{3, 1}, {}, {2, 3}, {}, {}});
    const LoraAdapter adapter(table), gradients(table);
    initialise(adapter.store(), 2);
    for (std::int64_t i = 0; i < 14; ++i) adapter.store().b(2).f32()[i] = 0.1f * static_cast<float>(i - 5);
    const ParameterStore weights = base.with_lora(&adapter.store());
    const std::int64_t rows = LoraStore::chunk(Device::cpu) + 37;
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
    const LoraAdapter gradients(model.adapter()->table());
    const float* g = gradients.store().values().data();
    std::vector<float> first;
    for (const dit::Keep keep : {dit::Keep::activations, dit::Keep::products, dit::Keep::branches, dit::Keep::inputs}) {
        std::fill_n(gradients.store().values().data(), size, 0.0f);
        with_policy(model.dit_weights(), keep, [&](auto& p) {
            return p.train(objective, t, advantage, 1.0, ParameterStore(model.dit().table(), gradients.store()));
        });
        if (first.empty()) first.assign(g, g + size);
        EXPECT_TRUE(std::equal(first.begin(), first.end(), g)) << "what is kept changes no bit";
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
