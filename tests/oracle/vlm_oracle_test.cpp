// Qwen3-VL against values that transformers computed in float64: every layer, pictures, decoding, scores.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/numbers.hpp"
#include "io/safetensors.hpp"
#include "model/vlm/decoder.hpp"
#include "model/vlm/training.hpp"
#include "model/vlm/vlm.hpp"
#include "../ops/test_device.hpp"
#include "oracle_folder.hpp"

namespace atelier::vlm {
namespace {

namespace fs = std::filesystem;

/// On the device that is tested, with products there of the precision.
struct Model {
    explicit Model(const std::string& name, ops::ProductPrecision precision = ops::ProductPrecision::fp32)
        : vlm(load_config(testing::oracle_folder() / "parts" / name / "config.json"), testing::test_device(), precision),
          arena("vlm", nn::frozen_bytes(vlm.table(), vlm.device(), precision)),
          frozen(vlm.table(), arena, vlm.device(), precision),
          weights(frozen.store()) {
        load(vlm, frozen, testing::oracle_folder() / "parts" / name);
        if (vlm.device() != Device::cpu) ops::backend().set_product_precision(precision);
    }
    ~Model() {
        if (vlm.device() != Device::cpu) ops::backend().set_product_precision(ops::ProductPrecision::fp32);
    }
    Vlm vlm;
    Arena arena;
    nn::FrozenWeights frozen;
    nn::ParameterStore weights;
};

/// A session and its memory; states and logits come to host memory.
struct Encoder {
    Encoder(const Model& used, std::int64_t tokens, std::int64_t patches) : model(used) {
        workspace.build([&](Arena& arena) {
            session.emplace(model.vlm, tokens, patches, arena);
            logits_there = arena.take_f32({tokens, model.vlm.config().text.vocabulary}, model.vlm.device());
            return 0;
        });
    }
    std::vector<float> logits(const Tensor& states) {
        const Tensor there = logits_there.slice(0, states.size(0));
        session->logits(model.weights, states, there);
        return fetch(there);
    }
    static std::vector<float> fetch(const Tensor& value) {
        std::vector<float> here(static_cast<std::size_t>(value.elements()));
        transfer(value, Tensor::of(here.data(), value.shape()));
        return here;
    }
    const Model& model;
    Workspace workspace{"session"};
    std::optional<Session> session;
    Tensor logits_there;
};

struct Case {
    explicit Case(const std::string& name)
        : folder(testing::oracle_folder() / "parts" / name), info(nlohmann::json::parse(std::ifstream(folder / "case.json"))),
          in(io::Safetensors::open(folder / "inputs.safetensors")), out(io::Safetensors::open(folder / "outputs.safetensors")),
          ids(in.integers("input_ids")), mask(in.integers("attention_mask")) {
        batch = in.at("input_ids").shape[0];
        length = in.at("input_ids").shape[1];
        if (in.contains("pixel_values")) {
            pixels = in.floats("pixel_values");
            patch_elements = in.at("pixel_values").shape[1];
            const auto thw = in.integers("image_grid_thw");
            for (std::size_t i = 0; i < thw.size(); i += 3) grids.push_back({thw[i], thw[i + 1], thw[i + 2]});
        }
    }
    /// Unpadded ids of a row and the index of its first token.
    std::vector<std::int32_t> row(std::int64_t r, std::int64_t& first) const {
        std::vector<std::int32_t> found;
        first = -1;
        for (std::int64_t i = 0; i < length; ++i)
            if (mask[r * length + i] != 0) {
                if (first < 0) first = i;
                found.push_back(static_cast<std::int32_t>(ids[r * length + i]));
            }
        return found;
    }
    std::int64_t patches() const { return patch_elements == 0 ? 0 : static_cast<std::int64_t>(pixels.size()) / patch_elements; }
    double tolerance(const std::string& name) const { return info["tolerance"][name]["atol"].get<double>(); }

    fs::path folder;
    nlohmann::json info;
    io::Safetensors in, out;
    std::vector<std::int64_t> ids, mask;
    std::vector<float> pixels;
    std::vector<GridThw> grids;
    std::int64_t batch, length, patch_elements = 0;
};

double worst(const float* a, const float* b, std::int64_t n) {
    double w = 0;
    for (std::int64_t i = 0; i < n; ++i) w = std::max(w, std::abs(double(a[i]) - b[i]));
    return w;
}

/// Rows of a padded batch one by one; vision stages are packed picture by picture over the batch.
void check_layers(const std::string& name, const std::string& model_name) {
    SCOPED_TRACE(name + " with " + model_name);
    const Case c(name);
    const Model model(model_name);
    const Config& config = model.vlm.config();
    Encoder encoder(model, c.length, c.patches());
    Session& session = *encoder.session;
    std::size_t picture = 0;
    std::int64_t patch = 0, seen = 0;
    for (std::int64_t r = 0; r < c.batch; ++r) {
        std::int64_t first = 0;
        const auto ids = c.row(r, first);
        const auto n = static_cast<std::int64_t>(ids.size());
        std::vector<GridThw> grids;
        std::int64_t patches = 0, image_tokens = std::count(ids.begin(), ids.end(), config.image_token);
        while (image_tokens > 0) {
            grids.push_back(c.grids.at(picture++));
            patches += grids.back()[1] * grids.back()[2];
            image_tokens -= grids.back()[1] * grids.back()[2] / (config.vision.merge * config.vision.merge);
        }
        const Tensor pixels = patches == 0 ? Tensor()
                                           : Tensor::of(c.pixels.data() + patch * c.patch_elements, {patches, c.patch_elements});
        const auto compare_text = [&](const std::string& what, const float* found, std::int64_t width) {
            if (!c.out.contains(what)) return;
            const auto expected = c.out.floats(what);
            EXPECT_LE(worst(found, expected.data() + (r * c.length + first) * width, n * width), c.tolerance(what)) << what;
            ++seen;
        };
        const Tensor there = session.encode(model.weights, ids, pixels, grids, [&](const std::string& what, const Tensor& value) {
            const auto found = Encoder::fetch(value);
            if (what.starts_with("text.")) return compare_text(what, found.data(), value.size(1));
            const auto expected = c.out.floats(what);
            const std::int64_t per = what == "vision.merger" || what.starts_with("vision.deepstack") ? config.vision.merge * config.vision.merge : 1;
            EXPECT_LE(worst(found.data(), expected.data() + patch / per * value.size(1), value.elements()), c.tolerance(what)) << what;
            ++seen;
        });
        const auto states = Encoder::fetch(there);
        compare_text("hidden_pre_norm", states.data(), config.text.hidden);
        compare_text("logits", encoder.logits(there).data(), config.text.vocabulary);
        EXPECT_EQ(Encoder::fetch(session.encode(model.weights, ids, pixels, grids)), states) << "the same bits twice";
        if (c.out.contains("pipeline.prompt_embeds")) {
            const std::int64_t drop = c.info["drop_idx"].get<std::int64_t>(), kept = c.out.at("pipeline.prompt_embeds").shape[1];
            const auto expected = c.out.floats("pipeline.prompt_embeds");
            EXPECT_LE(worst(states.data() + drop * config.text.hidden, expected.data() + r * kept * config.text.hidden,
                            (n - drop) * config.text.hidden),
                      c.tolerance("pipeline.prompt_embeds"));
        }
        if (c.out.contains("position_ids") && !grids.empty()) {
            const auto expected = c.out.integers("position_ids");
            const Positions p = make_positions(config, ids, grids);
            for (std::int64_t axis = 0; axis < 3; ++axis)
                for (std::int64_t i = 0; i < n; ++i)
                    ASSERT_EQ(p.token[i][axis], expected[(axis * c.batch + r) * c.length + first + i]) << axis << " " << i;
            EXPECT_EQ(p.rope_delta(), c.out.integers("rope_deltas")[r]);
        }
        patch += patches;
    }
    EXPECT_GE(seen, c.batch * (config.text.layers + 2));
}

TEST(vlm_oracle, TextLayersAndLogits) { check_layers("case-vlm-text", "model-vlm"); }
TEST(vlm_oracle, PictureInThePrompt) { check_layers("case-vlm-image", "model-vlm"); }
TEST(vlm_oracle, TwoPicturesLeftPadded) { check_layers("case-vlm-two-images", "model-vlm"); }
TEST(vlm_oracle, ShardedBf16Checkpoint) { check_layers("case-vlm-image", "model-vlm-sharded-bf16"); }

// Operands of products and attention rounded to bf16, by up to 2^-8 of each: errors of a dozen roundings a layer add like a random walk.
TEST(vlm_oracle, ProductsInBf16) {
    if (testing::test_device() != Device::cuda) GTEST_SKIP() << "no device is tested (ATELIER_TEST_DEVICE)";
    const Case c("case-vlm-image");
    const Model model("model-vlm", ops::ProductPrecision::bf16);
    Encoder encoder(model, c.length, c.patches());
    std::int64_t first = 0;
    const auto ids = c.row(0, first);
    const Tensor pixels = Tensor::of(c.pixels.data(), {c.patches(), c.patch_elements});
    const auto run = [&] { return Encoder::fetch(encoder.session->encode(model.weights, ids, pixels, c.grids)); };
    const auto found = run(), again = run();
    EXPECT_EQ(again, found);
    const auto all = c.out.floats("hidden_pre_norm");
    double square = 0, error = 0;
    for (std::size_t i = 0; i < found.size(); ++i) {
        const double expected = all[static_cast<std::size_t>(first) * static_cast<std::size_t>(model.vlm.config().text.hidden) + i];
        square += expected * expected;
        error += (found[i] - expected) * (found[i] - expected);
    }
    const double layers = static_cast<double>(model.vlm.config().text.layers + model.vlm.config().vision.depth);
    EXPECT_LT(std::sqrt(error / square), 0x1p-8 * std::sqrt(12 * layers));
    EXPECT_GT(std::sqrt(error / square), 0x1p-12) << "products were not in bf16";
}

/// Gradients of the case's loss, in host memory, flat; and the loss.
Numbers gradients_of(const Case& c, const Model& model, double& loss) {
    const auto labels = c.in.integers("labels");
    const std::int64_t labelled = c.batch * c.length - std::count(labels.begin(), labels.end(), -100), vocabulary = model.vlm.config().text.vocabulary;
    std::optional<TrainingPass> planned;
    nn::ParameterStore gradients_there;
    const Arena arena = Arena::of("training", [&](Arena& taken) {
        gradients_there = nn::ParameterStore(model.vlm.table(), taken, model.vlm.device());
        planned.emplace(model.vlm, c.length, c.patches(), c.length, taken);
    });
    TrainingPass& pass = *planned;
    loss = 0;
    for (std::int64_t r = 0; r < c.batch; ++r) {
        std::int64_t first = 0;
        const auto ids = c.row(r, first);
        std::vector<std::int64_t> rows;
        std::vector<std::int32_t> targets;
        for (std::size_t i = 0; i + 1 < ids.size(); ++i)  // the token at i predicts the next one
            if (const auto label = labels[r * c.length + first + i + 1]; label != -100) {
                rows.push_back(static_cast<std::int64_t>(i));
                targets.push_back(static_cast<std::int32_t>(label));
            }
        const Tensor pixels = c.pixels.empty() ? Tensor() : Tensor::of(c.pixels.data(), {static_cast<std::int64_t>(c.pixels.size()) / c.patch_elements, c.patch_elements});
        pass.forward(model.weights, ids, pixels, c.grids);
        std::vector<float> logits(rows.size() * vocabulary);
        const Tensor l = Tensor::of(logits.data(), {static_cast<std::int64_t>(rows.size()), vocabulary});
        pass.logits(model.weights, rows, l);
        loss += cross_entropy(targets, labelled, l);
        pass.backward(model.weights, gradients_there, l, {});
    }
    return Numbers(gradients_there.flat(), Device::cpu);
}

/// How many tensors' gradients of the case's loss are off, and how many there are. `broken` changes the gradients before they are
/// compared.
struct GradientVerdict {
    std::size_t wrong = 0, compared = 0;
};
GradientVerdict check_gradients(const std::string& name, const std::function<void(const nn::ParameterStore&)>& broken = {}) {
    const Case c(name);
    const Model model("model-vlm");
    double loss = 0;
    const Numbers flat = gradients_of(c, model, loss);
    const nn::ParameterStore gradients(model.vlm.table(), flat.tensor());
    EXPECT_NEAR(loss, c.out.floats("loss")[0], c.tolerance("loss"));
    if (broken) broken(gradients);
    const auto expected = io::Safetensors::open(c.folder / "gradients.safetensors");
    const double bound = c.info["gradient_tolerance"]["rtol"].get<double>();
    GradientVerdict verdict;
    for (int i = 0; i < model.vlm.table().size(); ++i) {
        const std::string& tensor = model.vlm.table().spec(i).name;
        const Tensor found = gradients[i];
        if (!expected.contains(tensor)) {
            EXPECT_EQ(std::count(found.f32(), found.f32() + found.elements(), 0.0f), found.elements()) << tensor << " has a gradient";
            continue;
        }
        const auto value = expected.floats(tensor);
        double largest = 0;
        for (float v : value) largest = std::max(largest, std::abs(double(v)));
        ++verdict.compared;
        if (!(worst(found.f32(), value.data(), found.elements()) <= bound * largest)) {
            ++verdict.wrong;
            if (!broken) ADD_FAILURE() << tensor << ": off by " << worst(found.f32(), value.data(), found.elements()) / largest << " of its largest entry, allowed " << bound;
        }
    }
    EXPECT_EQ(verdict.compared, expected.tensors().size());
    return verdict;
}

TEST(vlm_oracle, GradientsOfTheText) { EXPECT_GT(check_gradients("case-vlm-text").compared, 0u); }
TEST(vlm_oracle, GradientsThroughPictureMergersAndDeepstack) { EXPECT_GT(check_gradients("case-vlm-image").compared, 0u); }
TEST(vlm_oracle, SeesAChangedGradient) {
    const auto verdict = check_gradients("case-vlm-image", [](const nn::ParameterStore& g) {
        for (const char* name : {"model.visual.pos_embed.weight", "model.visual.deepstack_merger_list.0.linear_fc1.bias"}) {
            float* v = g.at(name).f32();
            *std::max_element(v, v + g.at(name).elements()) *= 1.001f;
        }
    });
    EXPECT_EQ(verdict.wrong, 2u);
}

// As ProductsInBf16, and once more on the way back; each tensor's gradient beside the one in fp32.
TEST(vlm_oracle, GradientsInBf16) {
    if (testing::test_device() != Device::cuda) GTEST_SKIP() << "no device is tested (ATELIER_TEST_DEVICE)";
    for (const char* name : {"case-vlm-text", "case-vlm-image"}) {
        SCOPED_TRACE(name);
        const Case c(name);
        double loss = 0, rounded_loss = 0, again_loss = 0;
        const Numbers expected = gradients_of(c, Model("model-vlm"), loss);
        const Model model("model-vlm", ops::ProductPrecision::bf16);
        const Numbers found = gradients_of(c, model, rounded_loss), again = gradients_of(c, model, again_loss);
        EXPECT_TRUE(std::equal(found.span().begin(), found.span().end(), again.span().begin())) << "other bits the second time";
        EXPECT_EQ(rounded_loss, again_loss);
        const double layers = static_cast<double>(model.vlm.config().text.layers + model.vlm.config().vision.depth);
        const double bound = 2 * 0x1p-8 * std::sqrt(12 * layers);
        const nn::ParameterStore exact(model.vlm.table(), expected.tensor()), rounded(model.vlm.table(), found.tensor());
        double all_squares = 0, all_errors = 0;
        for (int i = 0; i < model.vlm.table().size(); ++i) {
            const Tensor a = exact[i], b = rounded[i];
            double square = 0, error = 0;
            for (std::int64_t k = 0; k < a.elements(); ++k) {
                const double off = double(b.f32()[k]) - a.f32()[k];
                square += double(a.f32()[k]) * a.f32()[k];
                error += off * off;
            }
            EXPECT_LE(std::sqrt(error), bound * std::sqrt(square)) << model.vlm.table().spec(i).name;
            all_squares += square;
            all_errors += error;
        }
        std::cout << name << ": gradients differ by " << std::sqrt(all_errors / all_squares) << " of them, the loss by "
                  << std::abs(rounded_loss - loss) / loss << '\n';
        EXPECT_GT(std::sqrt(all_errors / all_squares), 0x1p-12) << "products were not in bf16";
        EXPECT_NEAR(rounded_loss, loss, bound / 2 * loss);
    }
}

TEST(vlm_oracle, GreedyDecoding) {
    const Case c("case-vlm-generate");
    const Model model("model-vlm");
    const auto expected = c.out.integers("ids");
    const auto logits = c.out.floats("logits");
    const std::int64_t vocabulary = model.vlm.config().text.vocabulary, steps = static_cast<std::int64_t>(expected.size());
    Encoder encoder(model, c.length + steps, c.patches());
    Session& session = *encoder.session;
    std::int64_t first = 0;
    const auto ids = c.row(0, first);
    const Tensor states = session.encode(model.weights, ids, Tensor::of(c.pixels.data(), {static_cast<std::int64_t>(c.pixels.size()) / c.patch_elements, c.patch_elements}), c.grids);
    Tensor last = states.slice(states.size(0) - 1, states.size(0));
    for (std::int64_t k = 0; k < steps; ++k) {
        const auto found = encoder.logits(last);
        EXPECT_LE(worst(found.data(), logits.data() + k * vocabulary, vocabulary), c.tolerance("logits")) << k;
        const auto id = std::max_element(found.begin(), found.end()) - found.begin();
        ASSERT_EQ(id, expected[k]) << k;
        last = session.decode(model.weights, static_cast<std::int32_t>(id));
    }
}

/// The case's prompt cut after `prefix` tokens, continued greedily by a decoder that holds it `copies` times, among them one that
/// is a token ahead. Returns the logits of each step of the last copy.
std::vector<float> decode_in_company(const Case& c, const Model& model, std::int64_t prefix, int copies, std::int64_t steps,
                                     const std::vector<std::int64_t>& expected) {
    const std::int64_t vocabulary = model.vlm.config().text.vocabulary;
    std::optional<Session> session;
    std::optional<Decoder> decoder;
    Tensor logits_there;
    Workspace workspace("decoder");
    workspace.build([&](Arena& arena) {
        session.emplace(model.vlm, c.length + 1, c.patches(), arena);
        decoder.emplace(model.vlm, DecoderSize{copies, 2, c.length, c.length + steps + 1}, arena);
        logits_there = arena.take_f32({copies, vocabulary}, model.vlm.device());
        return 0;
    });
    const auto logits_of = [&](const Tensor& states) {
        const Tensor there = logits_there.slice(0, states.size(0));
        decoder->logits(model.weights, states, there);
        return Encoder::fetch(there);
    };
    std::int64_t first = 0;
    const auto ids = c.row(0, first);
    const Tensor pixels = Tensor::of(c.pixels.data(), {static_cast<std::int64_t>(c.pixels.size()) / c.patch_elements, c.patch_elements});
    session->encode(model.weights, std::span(ids).subspan(0, prefix), pixels, c.grids);
    const std::int64_t position = session->next_position();
    decoder->set_prefix(1, *session);
    std::vector<int> sequences;
    std::vector<std::int32_t> next;
    std::vector<float> one(vocabulary);
    const auto likeliest = [&] { return static_cast<std::int32_t>(std::max_element(one.begin(), one.end()) - one.begin()); };
    for (int i = 0; i < copies; ++i) {
        session->rewind(prefix, position);
        const Tensor states = session->extend(model.weights, std::span(ids).subspan(prefix));
        decoder->set_sequence(i, 1, *session);
        one = logits_of(states.slice(states.size(0) - 1, states.size(0)));
        sequences.push_back(i);
        next.push_back(likeliest());
    }
    std::vector<float> all = one;
    if (copies > 1) {  // out of step with the others
        const int zero = 0;
        const std::int32_t other = 5;
        decoder->step(model.weights, std::span(&zero, 1), std::span(&other, 1));
    }
    for (std::int64_t k = 1; k < steps; ++k) {
        EXPECT_EQ(next.back(), expected[k - 1]) << k;
        const auto logits = logits_of(decoder->step(model.weights, sequences, next));
        for (int i = 0; i < copies; ++i) {
            one.assign(logits.begin() + i * vocabulary, logits.begin() + (i + 1) * vocabulary);
            next[i] = likeliest();
        }
        all.insert(all.end(), one.begin(), one.end());
    }
    return all;
}

TEST(vlm_oracle, BatchedDecodingWithASharedPrefix) {
    const Case c("case-vlm-generate");
    const Model model("model-vlm");
    const auto expected = c.out.integers("ids");
    const auto logits = c.out.floats("logits");
    const auto steps = static_cast<std::int64_t>(expected.size());
    std::int64_t first = 0;
    const auto length = static_cast<std::int64_t>(c.row(0, first).size());
    const auto alone = decode_in_company(c, model, length - 5, 1, steps, expected);
    EXPECT_LE(worst(alone.data(), logits.data(), static_cast<std::int64_t>(logits.size())), c.tolerance("logits"));
    const bool emulated = model.vlm.device() != Device::cpu;  // and slow
    for (const int copies : emulated ? std::vector{3, 9} : std::vector{2, 3, 4, 5, 9}) EXPECT_EQ(decode_in_company(c, model, length - 5, copies, steps, expected), alone) << copies;
    const auto elsewhere = decode_in_company(c, model, length - 1, 3, steps, expected);
    EXPECT_LE(worst(elsewhere.data(), logits.data(), static_cast<std::int64_t>(logits.size())), c.tolerance("logits"));
}

TEST(vlm_oracle, ExpectedScoreAfterASharedPrefix) {
    const Case c("case-vlm-judge");
    const Model model("model-vlm");
    std::int64_t first = 0;
    const auto length = static_cast<std::int64_t>(c.row(0, first).size());
    const auto logits = decode_in_company(c, model, length - 4, 3, 1, {});
    std::vector<std::int32_t> candidates;
    for (auto id : c.in.integers("candidate_ids")) candidates.push_back(static_cast<std::int32_t>(id));
    EXPECT_NEAR(read_score(logits, candidates).expected_score, c.out.floats("expected_score")[0], c.tolerance("expected_score"));
}

TEST(vlm_oracle, ExpectedScoreOfTheJudge) {
    const Case c("case-vlm-judge");
    const Model model("model-vlm");
    Encoder encoder(model, c.length, c.patches());
    Session& session = *encoder.session;
    std::int64_t first = 0;
    const auto ids = c.row(0, first);
    const Tensor states = session.encode(model.weights, ids, Tensor::of(c.pixels.data(), {static_cast<std::int64_t>(c.pixels.size()) / c.patch_elements, c.patch_elements}), c.grids);
    const auto logits = encoder.logits(states.slice(states.size(0) - 1, states.size(0)));
    std::vector<std::int32_t> candidates;
    for (auto id : c.in.integers("candidate_ids")) candidates.push_back(static_cast<std::int32_t>(id));
    const ScoreReading r = read_score(logits, candidates);
    const auto close = [&](const std::string& name, const std::vector<double>& values) {
        const auto expected = c.out.floats(name);
        for (std::size_t i = 0; i < values.size(); ++i) EXPECT_NEAR(values[i], expected[i], c.tolerance(name)) << name;
    };
    close("probability", r.probability);
    close("probability_renormalised", r.renormalised);
    close("probability_of_five", {r.probability_of_candidates});
    close("expected_score", {r.expected_score});
}

}  // namespace
}  // namespace atelier::vlm
