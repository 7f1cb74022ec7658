// What stages share: scores to advantages, curated prompts on disk, the jobs of a configuration.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <set>

#include "stage/dag.hpp"
#include "stage/schema.hpp"
#include "stage/scoring.hpp"

namespace atelier::stage {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

io::TrajectorySamples group(std::map<std::string, std::vector<float>> scores) {  // NaN: absent
    io::TrajectorySamples s;
    const std::size_t n = scores.begin()->second.size();
    s.sample_id.resize(n);
    s.status.assign(n, 0);
    for (auto& [name, values] : scores) {
        io::RewardColumn& c = s.reward[name];
        for (const float v : values) c.present.push_back(std::isnan(v) ? 0 : 1);
        c.score = values;
    }
    return s;
}

const std::vector<std::string> tiers{"alignment", "aesthetics", "portrait"};
const float absent = std::nanf("");

TEST(Scores, TiersAreGatedAndAbsentDimensionsLeftOut) {
    const auto s =
        group({{"alignment", {2, 4}}, {"aesthetics", {5, 5}}, {"portrait", {absent, absent}}});
    const auto open = gated_scores(s, tiers, 0), gated = gated_scores(s, tiers, 3);
    EXPECT_THAT(open.dimensions, ElementsAre("alignment", "aesthetics"));
    EXPECT_THAT(open.scores, ElementsAre(2, 5, 4, 5));
    EXPECT_THAT(gated.scores, ElementsAre(2, 2, 4, 5))
        << "a picture that shows something else earns nothing by being pretty";
}

TEST(Advantages, WeighDimensionsAndSilenceThoseWithoutSpread) {
    auto s = group({{"alignment", {1, 2, 3, 4}}, {"aesthetics", {4.0f, 4.01f, 4.02f, 4.0f}}});
    set_advantages(gated_scores(s, tiers, 0), {{"alignment", 1.0}, {"aesthetics", 3.0}}, 0.1, s);
    EXPECT_FLOAT_EQ(s.total[0], (1 + 3 * 4.0f) / 4);
    const float unit = 1.0f / std::sqrt(1.25f);
    for (int i = 0; i < 4; ++i)
        EXPECT_NEAR(s.advantage[static_cast<std::size_t>(i)], (static_cast<float>(i) - 1.5f) * unit,
                    1e-3);
}

TEST(Advantages, AGroupWithoutSpreadIsDropped) {
    auto s = group({{"alignment", {3, 3, 3}}});
    set_advantages(gated_scores(s, tiers, 0), {}, 0.1, s);
    EXPECT_THAT(s.status, ElementsAre(2, 2, 2));
    EXPECT_THAT(s.advantage, ElementsAre(0, 0, 0));
}

TEST(Advantages, ASampleWithoutScoresHasNoTotalAndNoAdvantage) {
    auto s = group({{"alignment", {1, absent, 5}}});
    s.status[1] = static_cast<std::uint8_t>(io::SampleStatus::reward_absent);
    set_advantages(gated_scores(s, tiers, 0), {}, 0.1, s);
    EXPECT_TRUE(std::isnan(s.total[1]));
    EXPECT_EQ(s.advantage[1], 0);
    EXPECT_THAT(s.status, ElementsAre(0, 1, 0));
}

class Run : public ::testing::Test {
  protected:
    void SetUp() override {
        directory_ = fs::temp_directory_path() /
                     fmt::format("atelier-stage-{}-{}", getpid(),
                                 ::testing::UnitTest::GetInstance()->current_test_info()->name());
        fs::create_directories(directory_);
    }
    void TearDown() override { fs::remove_all(directory_); }
    Context context(const std::vector<std::string>& set) {
        return {{directory_},
                config::Config::resolve(fs::path(ATELIER_SOURCE_DIR) / "configs/mini.toml", set,
                                        schema()),
                nullptr,
                "",
                1};
    }
    fs::path directory_;
};

TEST_F(Run, CuratedPromptsComeBackAsTheyWere) {
    Curated c;
    c.config_hash = "c", c.pool_hash = "p";
    c.number = {4, 7, 9};
    c.id = {"a", "b", "c"}, c.text = {"ein Stern", "", "x"},
    c.category = {"general", "portrait", "general"}, c.verdict = {"kept", "no_reward", "kept"};
    c.kept = {1, 0, 1};
    c.mean = {3, 0, 4}, c.range = {1, 0, 2};
    c.weights["general"] = {{"alignment", 0.75}, {"aesthetics", 0.25}};
    c.mean_std["general"] = {{"alignment", 1.5}, {"aesthetics", 0.5}};
    write_curated(directory_ / "t2i.h5", c);
    const Curated back = read_curated(directory_ / "t2i.h5");
    EXPECT_THAT(back.kept_numbers(), ElementsAre(4, 9));
    EXPECT_EQ(back.text, c.text);
    EXPECT_EQ(back.verdict, c.verdict);
    EXPECT_EQ(back.weights, c.weights);
    EXPECT_EQ(back.mean_std, c.mean_std);
}

TEST_F(Run, JobsComeAfterWhatTheyNeed) {
    const auto c = context({"grpo.iterations=3", "task.edit.iterations=2", "distill.rounds=2"});
    const auto jobs = pipeline_jobs(c);
    std::set<std::string> before, outputs;
    for (const Job& job : jobs) {
        for (const std::string& name : job.after)
            EXPECT_TRUE(before.contains(name)) << job.name << " comes before " << name;
        EXPECT_TRUE(before.insert(job.name).second) << job.name << " stands twice";
        EXPECT_TRUE(outputs.insert(job.output).second) << job.output << " is written twice";
    }
    // Two curations; 3 + 2 + 3 iterations of two jobs; two rounds of two dumps and a distillation;
    // the evaluation.
    EXPECT_EQ(jobs.size(), 2u + 16u + 6u + 1u);
    const auto find = [&](const std::string& name) {
        return *std::find_if(jobs.begin(), jobs.end(),
                             [&](const Job& j) { return j.name == name; });
    };
    EXPECT_THAT(find("rollout-t2i-0002").after, ElementsAre("grpo-t2i-0001"));
    EXPECT_THAT(find("rollout-mix-0001").after, ElementsAre("curate-edit", "curate-t2i"));
    EXPECT_THAT(find("teacher-dump-t2i-01").after, ElementsAre("grpo-edit-0002", "grpo-t2i-0003"));
    EXPECT_THAT(find("teacher-dump-t2i-02").after, ElementsAre("distill-01"));
    EXPECT_THAT(find("evaluate").after, ElementsAre("distill-02", "grpo-mix-0003"));
    EXPECT_THAT(to_dot(jobs), HasSubstr("\"distill-02\" -> \"evaluate\";"));
}

TEST_F(Run, PartsOfThePipelineCanBeLeftOut) {
    const auto names = [&](const std::vector<std::string>& set) {
        std::string all;
        for (const Job& job : pipeline_jobs(context(set))) all += job.name + " ";
        return all;
    };
    EXPECT_EQ(names({"grpo.iterations=1", "pipeline.teachers=false", "curate.enabled=false"}),
              "rollout-mix-0001 grpo-mix-0001 evaluate ");
    EXPECT_THROW(names({"pipeline.teachers=false", "pipeline.mix=false"}), Error);
}

TEST_F(Run, PinnedWeightsAreReadAndMistakesNamed) {
    const auto c = context({"task.t2i.weights=[\"general/alignment=2.5\"]"});
    EXPECT_EQ(pinned_weights(c, "t2i").at("general").at("alignment"), 2.5);
    for (const char* bad :
         {"general/alignment", "alignment=1", "general/alignment=-1", "general/alignment=x"})
        EXPECT_THROW(
            pinned_weights(context({fmt::format("task.t2i.weights=[\"{}\"]", bad)}), "t2i"), Error)
            << bad;
}

TEST_F(Run, PromptsOfAnotherKindAreRefused) {
    std::ofstream(directory_ / "p.jsonl")
        << R"({"id":"a","task":"edit","category":"general","text":"x"})" << '\n';
    EXPECT_EQ(read_prompts(directory_ / "p.jsonl", "mine", "edit").at(0).task, "mine");
    EXPECT_THROW(read_prompts(directory_ / "p.jsonl", "t2i", "t2i"), Error);
    std::ofstream(directory_ / "q.jsonl")
        << R"({"id":"a","task":"edit","category":"a/b","text":"x"})" << '\n';
    EXPECT_THROW(read_prompts(directory_ / "q.jsonl", "edit", "edit"), Error);
}

}  // namespace
}  // namespace atelier::stage
