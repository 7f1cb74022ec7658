// Losses of the judge against central differences, labels in and out of files, a judge that learns.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <fstream>

#include "core/error.hpp"
#include "core/philox.hpp"
#include "io/image/png.hpp"
#include "judge/judge_model.hpp"
#include "judge/label_pass.hpp"
#include "judge/trained_judge.hpp"
#include "stage/trainer.hpp"

namespace atelier::judge {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

std::vector<float> some_logits(std::size_t n, std::uint64_t seed) {
    Random random(random_key(seed, RandomUse::test));
    std::vector<float> z(n);
    for (float& v : z) v = static_cast<float>(2 * random.normal());
    return z;
}

/// Gradient of f at z by central differences.
std::vector<double> slope(const std::vector<float>& z, const std::function<double(const std::vector<float>&)>& f) {
    std::vector<double> g;
    for (std::size_t i = 0; i < z.size(); ++i) {
        std::vector<float> up = z, down = z;
        up[i] += 1e-3f;
        down[i] -= 1e-3f;
        g.push_back((f(up) - f(down)) / (double(up[i]) - double(down[i])));
    }
    return g;
}

const std::vector<std::int32_t> candidates{3, 9, 4, 11, 6};

TEST(ScoreLoss, GradientOfDistanceAndMass) {
    const auto z = some_logits(14, 1);
    const std::vector<double> labels{2.0, 4.5, 3.25};
    const auto value = [&](std::vector<float> at) {
        const ScoreLoss l = score_loss(labels, candidates, 0.7, 0.3, at);
        return 0.7 * l.loss + 0.3 * l.mass;
    };
    std::vector<float> gradient = z;
    const ScoreLoss loss = score_loss(labels, candidates, 0.7, 0.3, gradient);
    EXPECT_NEAR(loss.expected, expected_score(z, candidates), 1e-12);
    double by_hand = 0;
    for (const double y : labels) by_hand += (loss.expected - y) * (loss.expected - y) / 3;
    EXPECT_NEAR(loss.loss, by_hand, 1e-12);
    const auto expected = slope(z, value);
    for (std::size_t i = 0; i < z.size(); ++i) EXPECT_NEAR(gradient[i], expected[i], 2e-6) << i;
}

TEST(ScoreLoss, GradientOfTheExpectedScore) {
    const auto z = some_logits(14, 2);
    std::vector<float> gradient = z;
    EXPECT_NEAR(score_gradient(candidates, -1.5, gradient), expected_score(z, candidates), 1e-12);
    const auto expected = slope(z, [](const std::vector<float>& at) { return -1.5 * expected_score(at, candidates); });
    for (std::size_t i = 0; i < z.size(); ++i) EXPECT_NEAR(gradient[i], expected[i], 2e-6) << i;
}

LabelPass::Sizes sizes_of(const std::vector<TrainingSample>& samples) {
    LabelPass::Sizes sizes;
    for (const auto& s : samples) sizes.cover(s);
    return sizes;
}

/// A judge that learns on one rank.
class Learner {
  public:
    Learner(const TrainedJudge& judge, const LabelPass::Sizes& sizes)
        : judge_(judge),
          world_(comm::make_self()),
          trainer_({judge.weights(), nullptr, judge.frozen()}, {}, {}, *world_),
          arena_(Arena::of("sequence", [&](Arena& arena) { pass_.emplace(judge.vlm(), 1.0, sizes, arena); })) {
        trainer_.zero_gradients();
    }
    JudgeLoss add_sample(const TrainingSample& s, double weight) { return pass_->add_sample(judge_.weights(), gradients(), s, weight); }
    JudgeLoss add_pair(const TrainingSample& better, const TrainingSample& worse, double weight) {
        return pass_->add_pair(judge_.weights(), gradients(), better, worse, weight);
    }
    const nn::ParameterStore& gradients() const { return trainer_.gradients(); }
    stage::Trainer& trainer() { return trainer_; }

  private:
    const TrainedJudge& judge_;
    std::unique_ptr<comm::Communicator> world_;
    stage::Trainer trainer_;
    std::optional<LabelPass> pass_;
    Arena arena_;
};

class JudgeTraining : public ::testing::Test {
  protected:
    JudgeTraining() : folder_(fs::temp_directory_path() / fmt::format("judge-training-{}", ::getpid())) {
        fs::remove_all(folder_);  // an earlier process's of the same number
        fs::create_directories(folder_);
        const fs::path base = fs::path(ATELIER_SOURCE_DIR) / "assets/mini/base";
        for (const char* part : {"text_encoder", "processor"})
            for (const auto& entry : fs::directory_iterator(base / part))
                fs::create_symlink(entry.path(), folder_ / entry.path().filename());
        asked_.dimension = "alignment";
        asked_.kind = "t2i";
        asked_.path = "alignment.toml";
        asked_.system = "Compare.";
        asked_.question = "{prompt}";
        asked_.rubric = "How?";
        asked_.level = {"bad", "poor", "fair", "good", "best"};
        asked_.answer = "Score: N.";
    }
    ~JudgeTraining() override { fs::remove_all(folder_); }
    /// Pictures of one colour: red ones are good, blue ones are bad.
    LabelledSample sample(int i) const {
        LabelledSample s;
        s.id = fmt::format("p{}", i);
        s.kind = "t2i";
        s.dimension = "alignment";
        s.category = i % 2 == 0 ? "general" : "portrait";
        s.prompt = "a red circle";
        const bool good = i % 2 == 0;
        s.rationale = good ? "it is red" : "it is blue";
        io::Image picture(64, 64, 3, static_cast<std::uint8_t>(10 * i));
        for (int y = 0; y < 64; ++y)
            for (int x = 0; x < 64; ++x) picture.at(x, y)[good ? 0 : 2] = 250;
        s.picture = std::make_shared<const LabelledPicture>(std::move(picture));
        s.scores = {{"anna", good ? 4.5 : 1.5}, {"ben", good ? 5.0 : 1.0}};
        return s;
    }
    /// Two good pictures and two bad ones, and the sizes that they need.
    std::pair<std::vector<TrainingSample>, LabelPass::Sizes> four_samples(const QuestionMaker& model) const {
        std::vector<TrainingSample> samples;
        LabelPass::Sizes sizes;
        for (int i = 0; i < 4; ++i) {
            samples.push_back(make_training_sample(model, asked_, sample(i)));
            sizes.cover(samples.back());
        }
        return {std::move(samples), sizes};
    }
    fs::path folder_;
    Template asked_;
};

TEST_F(JudgeTraining, TheAnswerStandsWhereItIsLearnt) {
    const JudgeModel model(folder_);
    const TrainingSample t = make_training_sample(model, asked_, sample(0));
    const auto& ids = t.question.ids;
    ASSERT_EQ(t.rows.size(), t.targets.size());
    // Every learnt token but the last stands right after its row.
    std::vector<std::int32_t> answer;
    for (std::size_t i = 0; i + 1 < t.rows.size(); ++i) {
        EXPECT_EQ(ids[static_cast<std::size_t>(t.rows[i]) + 1], t.targets[i]);
        answer.push_back(t.targets[i]);
    }
    EXPECT_EQ(model.tokenizer().decode(answer), "it is red\nScore: ");
    EXPECT_EQ(t.targets.back(), model.end_of_turn());
    EXPECT_EQ(ids.back(), model.tokenizer().id_of("5"));
    EXPECT_EQ(t.score_row, static_cast<std::int64_t>(ids.size()) - 2);
    EXPECT_EQ(t.scores, (std::vector<double>{4.5, 5.0}));
    LabelledSample silent = sample(0);
    silent.rationale.clear();
    EXPECT_THROW(make_training_sample(model, asked_, silent), Error);
    LabelledSample twice = sample(0);
    twice.rationale = "fine. Score: 5";
    EXPECT_THROW(make_training_sample(model, asked_, twice), Error) << "two scores would be taught";
}

TEST_F(JudgeTraining, WhatDoesNotApplyIsLearntAsNone) {
    const JudgeModel model(folder_);
    LabelledSample absent = sample(0);
    absent.scores = {{"anna", NAN}, {"ben", 2.0}, {"cleo", NAN}};
    EXPECT_FALSE(absent.applies());
    EXPECT_THROW(make_training_sample(model, asked_, absent), Error) << "the template's dimension always applies";
    asked_.may_not_apply = true;
    const TrainingSample t = make_training_sample(model, asked_, absent);
    EXPECT_EQ(t.score_row, -1);
    EXPECT_TRUE(t.scores.empty());
    EXPECT_EQ(t.targets.back(), model.end_of_turn());
    EXPECT_EQ(model.tokenizer().decode(std::vector(t.targets.begin(), t.targets.end() - 1)), "it is red\nScore: none");
    for (std::size_t i = 0; i + 1 < t.rows.size(); ++i) EXPECT_EQ(t.question.ids[static_cast<std::size_t>(t.rows[i]) + 1], t.targets[i]);
    // Most of them say that it applies: those who gave a score count.
    absent.scores = {{"anna", NAN}, {"ben", 2.0}, {"cleo", 3.0}};
    EXPECT_TRUE(absent.applies());
    EXPECT_EQ(absent.mean_score(), 2.5);
    EXPECT_EQ(make_training_sample(model, asked_, absent).scores, (std::vector<double>{2.0, 3.0}));
}

/// The trainer's gradient against central differences of its loss, along each tensor's own gradient.
void check_gradient(const fs::path& folder, const std::function<double(Learner&)>& add, const std::vector<TrainingSample>& samples) {
    const TrainedJudge model(folder, {});
    Learner learner(model, sizes_of(samples));
    add(learner);
    const nn::ParameterTable& table = model.vlm().table();
    const std::vector<float> gradient(learner.gradients().data(), learner.gradients().data() + table.flat_size());
    float* weights = model.weights().data();
    for (const char* name : {"lm_head.weight", "model.language_model.layers.1.mlp.down_proj.weight", "model.language_model.layers.0.self_attn.q_norm.weight",
                             "model.visual.merger.linear_fc2.weight", "model.visual.blocks.0.attn.qkv.weight"}) {
        const int row = table.find(name);
        ASSERT_GE(row, 0) << name;
        const std::int64_t begin = table.offset(row), end = begin + table.spec(row).shape.elements();
        double squares = 0, weight = 0;
        for (std::int64_t i = begin; i < end; ++i) {
            squares += double(gradient[i]) * gradient[i];
            weight += double(weights[i]) * weights[i];
        }
        ASSERT_GT(squares, 0) << name;
        const std::vector<float> before(weights + begin, weights + end);
        const double length = 1e-3 * std::sqrt(weight / squares);  // moves the tensor by a thousandth of its norm
        const auto at = [&](double t) {
            for (std::int64_t i = begin; i < end; ++i) weights[i] = static_cast<float>(before[i - begin] + t * gradient[i]);
            learner.trainer().zero_gradients();
            return add(learner);
        };
        const double found = (8 * (at(length) - at(-length)) - (at(2 * length) - at(-2 * length))) / (12 * length);
        std::copy(before.begin(), before.end(), weights + begin);
        EXPECT_NEAR(found / squares, 1.0, 0.02) << name;
    }
}

TEST_F(JudgeTraining, GradientOfASampleThroughTheWholeModel) {
    const JudgeModel model(folder_);
    const std::vector<TrainingSample> samples{make_training_sample(model, asked_, sample(1))};
    check_gradient(folder_, [&](Learner& t) {
        const JudgeLoss l = t.add_sample(samples[0], 0.5);
        return 0.5 * (l.score + l.language);
    }, samples);
}

TEST_F(JudgeTraining, GradientOfASampleThatDoesNotApply) {
    const JudgeModel model(folder_);
    asked_.may_not_apply = true;
    LabelledSample absent = sample(1);
    absent.scores = {{"anna", NAN}};
    const std::vector<TrainingSample> samples{make_training_sample(model, asked_, absent)};
    check_gradient(folder_, [&](Learner& t) {
        const JudgeLoss l = t.add_sample(samples[0], 0.5);
        EXPECT_EQ(l.score, 0);
        return 0.5 * l.language;
    }, samples);
}

TEST_F(JudgeTraining, GradientOfAPairThroughTheWholeModel) {
    const JudgeModel model(folder_);
    const std::vector<TrainingSample> samples{make_training_sample(model, asked_, sample(0)), make_training_sample(model, asked_, sample(1))};
    check_gradient(folder_, [&](Learner& t) {
        const JudgeLoss l = t.add_pair(samples[0], samples[1], 0.5);
        return 0.5 * (l.score + l.language);
    }, samples);
}

TEST_F(JudgeTraining, LearnsAndLeavesFrozenPartsAlone) {
    for (const bool pairwise : {false, true}) {
        TrainedParts parts;
        parts.vision = false;
        const TrainedJudge model(folder_, parts);
        const auto [samples, sizes] = four_samples(model);
        const nn::ParameterTable& table = model.vlm().table();
        const int frozen = table.find("model.visual.blocks.0.attn.qkv.weight");
        const Tensor tower = model.weights()[frozen];
        const std::vector<float> before(tower.f32(), tower.f32() + tower.elements());
        Learner learner(model, sizes);
        double first = 0, last = 0;
        for (int update = 0; update < 30; ++update) {
            learner.trainer().zero_gradients();
            JudgeLoss sum;
            for (std::size_t i = 0; i < 4; i += 2) {
                const auto add = [&](const JudgeLoss& l) { sum.score += l.score / 4, sum.language += l.language / 4; };
                if (pairwise) {
                    add(learner.add_pair(samples[i], samples[i + 1], 0.5));
                } else {
                    add(learner.add_sample(samples[i], 0.25));
                    add(learner.add_sample(samples[i + 1], 0.25));
                }
            }
            learner.trainer().step(2e-3);
            last = sum.score + sum.language;
            if (update == 0) first = last;
        }
        EXPECT_LT(last, 0.5 * first) << pairwise;
        EXPECT_TRUE(std::equal(before.begin(), before.end(), tower.f32()));
    }
}

/// An adapter of every matrix with numbers that are not zero, as if it had been trained.
TrainedParts with_adapter() {
    TrainedParts parts;
    parts.lora = {2, 3.0, {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "model.visual.blocks.*", "linear_fc1"}};
    return parts;
}
void draw(const nn::LoraStore& adapter) {
    Random random(random_key(5, RandomUse::test));
    const Tensor all = adapter.values().flat();
    std::generate_n(all.f32(), all.elements(), [&] { return static_cast<float>(0.05 * random.normal()); });
}

TEST_F(JudgeTraining, AnAdaptersGradientFollowsFromThatOfTheMergedWeights) {
    const TrainedJudge base(folder_, with_adapter()), merged(folder_, {});
    const TrainingSample s = make_training_sample(base, asked_, sample(1));
    Learner adapted(base, sizes_of({s})), whole(merged, sizes_of({s}));
    const nn::LoraStore& adapter = base.adapter()->store();
    draw(adapter);
    nn::merge_lora(adapter, merged.weights());
    const JudgeLoss a = adapted.add_sample(s, 1), b = whole.add_sample(s, 1);
    EXPECT_NEAR(a.score, b.score, 1e-5 * (1 + b.score));
    EXPECT_NEAR(a.language, b.language, 1e-5 * b.language);
    const std::vector<int> rows = adapter.table().adapted();
    const double scale = adapter.table().scale(rows.at(0));
    ASSERT_GT(rows.size(), 30u);
    for (const int row : rows) {
        // W = W0 + scale B A: dA = scale B^T dW, dB = scale dW A^T.
        const Tensor d = whole.gradients()[row], lower = adapter.a(row), upper = adapter.b(row);
        const std::int64_t out = d.size(0), in = d.size(1), rank = lower.size(0);
        for (const bool is_lower : {true, false}) {
            const Tensor found = is_lower ? adapted.gradients().lora()->a(row) : adapted.gradients().lora()->b(row);
            double apart = 0, size = 0;
            for (std::int64_t i = 0; i < found.size(0); ++i)
                for (std::int64_t j = 0; j < found.size(1); ++j) {
                    double expected = 0;
                    for (std::int64_t k = 0; k < (is_lower ? out : in); ++k)
                        expected += is_lower ? double(upper.f32()[k * rank + i]) * d.f32()[k * in + j] : double(d.f32()[i * in + k]) * lower.f32()[j * in + k];
                    expected *= scale;
                    apart += std::pow(found.f32()[i * found.size(1) + j] - expected, 2);
                    size += expected * expected;
                }
            ASSERT_GT(size, 0) << base.vlm().table().spec(row).name;
            EXPECT_LT(std::sqrt(apart / size), 1e-4) << base.vlm().table().spec(row).name << (is_lower ? " A" : " B");
        }
    }
}

TEST_F(JudgeTraining, AnAdapterLearnsBesideWeightsThatStay) {
    const TrainedJudge model(folder_, with_adapter());
    const auto [samples, sizes] = four_samples(model);
    const std::int64_t n = model.weights().flat().elements();
    const std::vector<float> before(model.weights().data(), model.weights().data() + n);
    Learner learner(model, sizes);
    double first = 0, last = 0;
    for (int update = 0; update < 30; ++update) {
        learner.trainer().zero_gradients();
        last = 0;
        for (const TrainingSample& s : samples) {
            const JudgeLoss l = learner.add_sample(s, 0.25);
            last += (l.score + l.language) / 4;
        }
        learner.trainer().step(1e-2);
        if (update == 0) first = last;
    }
    EXPECT_LT(last, 0.5 * first);
    EXPECT_TRUE(std::equal(before.begin(), before.end(), model.weights().data()));
    // Merged, and from its files, it is the same judge.
    const fs::path files = folder_ / "adapter";
    fs::create_directories(files);
    nn::save_lora(model.adapter()->store(), files, nn::LoraLayout::peft);
    fs::create_directories(folder_ / "saved");
    model.save(folder_ / "saved", true);
    const JudgeModel read(folder_), saved(folder_ / "saved");
    EXPECT_FALSE(std::equal(before.begin(), before.end(), saved.weights().data()));
    nn::merge_lora(nn::load_lora(files, read.vlm().table()).store(), read.weights());
    EXPECT_TRUE(std::equal(read.weights().data(), read.weights().data() + n, saved.weights().data()));
}

TEST_F(JudgeTraining, AdaptersThatCannotBeTrained) {
    const auto why = [&](const TrainedParts& parts) {
        try {
            TrainedJudge(folder_, parts);
        } catch (const Error& e) {
            EXPECT_EQ(e.kind(), ErrorKind::usage);
            return e.message();
        }
        return std::string("nothing was wrong");
    };
    TrainedParts parts = with_adapter();
    parts.lora.targets = {"*"};
    EXPECT_THAT(why(parts), HasSubstr("embed_tokens.weight is no product"));
    parts.lora.targets = {"pos_embed"};
    EXPECT_THAT(why(parts), HasSubstr("pos_embed.weight is no product"));
    parts.lora.targets = {"q_proj"};
    parts.text = false;
    EXPECT_THAT(why(parts), HasSubstr("nothing is trained"));
    const TrainedJudge model(folder_, with_adapter());
    const auto world = comm::make_self();
    try {
        stage::Trainer({model.weights(), nullptr, model.frozen()}, {}, {{}, 1, 0, {}, 2}, *world);
        ADD_FAILURE() << "an adapter's gradients were cut";
    } catch (const Error& e) {
        EXPECT_EQ(e.message(), "compute.zero = 2: an adapter's gradients are not cut over ranks; 0 or 1");
    }
}

TEST_F(JudgeTraining, LabelsInJsonLinesAndHdf5) {
    std::ofstream out(folder_ / "labels.jsonl");
    for (int i = 0; i < 3; ++i) io::write_png(folder_ / fmt::format("p{}.png", i), sample(i).picture->load());
    out << R"({"id": "p0", "kind": "t2i", "dimension": "alignment", "category": "general", "prompt": "a red circle", "picture": "p0.png", "scores": {"anna": 4.5, "ben": 5}, "rationale": "it is red"})" << "\n\n"
        << R"({"id": "p0", "kind": "t2i", "dimension": "aesthetics", "category": "general", "prompt": "a red circle", "picture": "p0.png", "scores": {"anna": 3, "ben": null}})" << '\n'
        << R"({"id": "p1", "kind": "edit", "dimension": "identity", "category": "portrait", "prompt": "add glasses", "picture": "p1.png", "sources": ["p2.png", "p0.png"], "scores": {"ben": 1.25}})" << '\n';
    out.close();
    const auto lines = read_labels(folder_ / "labels.jsonl");
    write_labels(folder_ / "labels.h5", lines);
    for (const auto& labels : {lines, read_labels(folder_ / "labels.h5")}) {
        ASSERT_EQ(labels.size(), 3u);
        EXPECT_EQ(labels[0].scores, (std::vector<std::pair<std::string, double>>{{"anna", 4.5}, {"ben", 5.0}}));
        EXPECT_EQ(labels[0].mean_score(), 4.75);
        EXPECT_EQ(labels[0].rationale, "it is red");
        ASSERT_EQ(labels[1].scores.size(), 2u);
        EXPECT_TRUE(std::isnan(labels[1].scores[1].second));
        EXPECT_EQ(labels[1].mean_score(), 3);
        EXPECT_EQ(labels[0].picture, labels[1].picture) << "one picture is held once";
        EXPECT_EQ(labels[2].picture->load(), sample(1).picture->load());
        ASSERT_EQ(labels[2].sources.size(), 2u);
        EXPECT_EQ(labels[2].sources[0]->load(), sample(2).picture->load());
        EXPECT_FALSE(labels[2].picture->is_kept()) << "pixels are read when they are asked for";
        EXPECT_EQ(labels[2].sources[1], labels[0].picture);
        EXPECT_EQ(labels[2].category, "portrait");
        EXPECT_EQ(labels[2].prompt, "add glasses");
    }
}

TEST_F(JudgeTraining, LabelsInSeveralFiles) {
    for (int i = 0; i < 3; ++i) write_labels(folder_ / fmt::format("part-{}", i), {sample(i)});  // told by what is in them, not by their names
    const auto file = [&](int i) { return (folder_ / fmt::format("part-{}", i)).string(); };
    const auto all = read_labels(std::vector{file(0), file(1), file(2)});
    ASSERT_EQ(all.size(), 3u);
    for (int i = 0; i < 3; ++i) EXPECT_EQ(all[static_cast<std::size_t>(i)].picture->load(), sample(i).picture->load());
    EXPECT_THROW(read_labels(std::vector{file(0), file(1), file(0)}), Error);
    const auto again = read_labels(folder_ / "part-1");
    LabelledSample other = sample(2);
    other.picture = std::make_shared<const LabelledPicture>(io::Image(32, 32, 3));
    write_labels(folder_ / "part-1", {other});
    EXPECT_THROW(again[0].picture->load(), Error) << "the file has changed";
    fs::remove(folder_ / "part-1");
    EXPECT_THROW(again[0].picture->load(), Error);
}

TEST_F(JudgeTraining, LabelsThatAreNone) {
    io::write_png(folder_ / "p.png", sample(0).picture->load());
    const auto why = [&](const std::string& text) {
        std::ofstream(folder_ / "bad.jsonl") << text;
        try {
            read_labels(folder_ / "bad.jsonl");
        } catch (const Error& e) {
            EXPECT_EQ(e.kind(), ErrorKind::input);
            return e.message();
        }
        return std::string("nothing was wrong");
    };
    const std::string good = R"({"id": "a", "kind": "t2i", "dimension": "alignment", "category": "c", "prompt": "p", "picture": "p.png", "scores": {"x": 3}})";
    const auto with = [&](const std::string& from, const std::string& to) {
        std::string line = good;
        return line.replace(line.find(from), from.size(), to);
    };
    EXPECT_EQ(why(good), "nothing was wrong");
    EXPECT_THAT(why(""), HasSubstr("holds no label"));
    EXPECT_THAT(why(good + "\n" + good), HasSubstr("bad.jsonl:2: alignment of 'a' stands twice"));
    EXPECT_THAT(why(with("3}", "5.5}")), HasSubstr("x gives 5.5"));
    EXPECT_THAT(why(with("3}", "\"3\"}")), HasSubstr("no number"));
    EXPECT_THAT(why(with("\"x\": 3", "")), HasSubstr("no score"));
    EXPECT_THAT(why(with("p.png", "../p.png")), HasSubstr("outside"));
    EXPECT_THAT(why(with("t2i", "t2v")), HasSubstr("t2i or edit"));
    EXPECT_THAT(why(with("\"prompt\"", "\"promt\"")), HasSubstr("no text 'prompt'"));
    EXPECT_THAT(why("[1]"), HasSubstr("not a JSON object"));
    EXPECT_EQ(why("\r\n" + good + "\r\n \r\n"), "nothing was wrong");
    EXPECT_THAT(why(with("\"scores\"", "\"scroes\": {}, \"scores\"")), HasSubstr("unknown field 'scroes'"));
    EXPECT_THAT(why(with("\"scores\"", "\"sources\": \"p.png\", \"scores\"")), HasSubstr("'sources' is no list"));
    EXPECT_THAT(why(with("t2i", "edit")), HasSubstr("an edit without 'sources'"));
    EXPECT_THAT(why(with("\"x\"", "\"\"")), HasSubstr("an annotator without a name"));
    EXPECT_THAT(why(with("p.png", "p.png\\u0000b")), HasSubstr("outside"));
    EXPECT_THROW(read_labels(folder_ / "none.jsonl"), Error);
}

}  // namespace
}  // namespace atelier::judge
