#include "config/config.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "core/error.hpp"

namespace atelier::config {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

const std::vector<Key> schema{
    {.name = "run.seed", .fallback = std::int64_t{1}, .meaning = "seed of everything", .low = 0},
    {.name = "sampling.eta", .fallback = 0.7, .meaning = "strength of the noise", .low = 0, .high = 1},
    {.name = "sampling.sampler", .fallback = std::string("flow_sde"), .meaning = "sampler", .choices = {"ode", "flow_sde"}},
    {.name = "sampling.rescale", .fallback = false, .meaning = "rescale"},
    {.name = "run.tasks", .fallback = std::vector<std::string>{"a"}, .meaning = "tasks"},
    {.name = "task.*.sizes", .fallback = Pairs{}, .meaning = "sizes"},
    {.name = "task.*.kind", .fallback = std::string("t2i"), .meaning = "kind", .choices = {"t2i", "edit"}},
    {.name = "task.*.group", .fallback = std::int64_t{8}, .meaning = "members", .unit = "samples"}};

class ConfigFile : public ::testing::Test {
  protected:
    void SetUp() override {
        directory_ = fs::temp_directory_path() / ("atelier-config-" + std::to_string(getpid()));
        fs::create_directories(directory_);
    }
    void TearDown() override { fs::remove_all(directory_); }
    fs::path file(const std::string& text, const std::string& name = "c.toml") {
        std::ofstream(directory_ / name) << text;
        return directory_ / name;
    }
    std::string refusal(const std::string& text, std::vector<std::string> set = {}) {
        try {
            Config::resolve(file(text), set, schema);
        } catch (const Error& e) {
            EXPECT_EQ(static_cast<int>(e.kind()), static_cast<int>(ErrorKind::usage));
            return e.message();
        }
        return "(no error)";
    }
    fs::path directory_;
};

TEST_F(ConfigFile, DefaultsFilesAndOverridesInThatOrder) {
    file("[run]\nseed = 5\n[sampling]\neta = 1\n", "base.toml");
    const std::vector<std::string> set{"sampling.eta=0.25", "run.tasks=[\"x\", \"y\"]", "sampling.sampler=ode"};
    const auto c = Config::resolve(file("extends = \"base.toml\"\n[sampling]\neta = 0.5\n[task.edit]\nkind = \"edit\"\n"), set, schema);
    EXPECT_EQ(c.integer("run.seed"), 5);
    EXPECT_EQ(c.number("sampling.eta"), 0.25);
    EXPECT_EQ(c.text("sampling.sampler"), "ode");
    EXPECT_FALSE(c.flag("sampling.rescale"));
    EXPECT_EQ(c.list("run.tasks"), (std::vector<std::string>{"x", "y"}));
    EXPECT_EQ(c.tasks(), std::vector<std::string>{"edit"});
    EXPECT_EQ(c.integer("task.edit.group"), 8);
    EXPECT_THAT(c.describe(), HasSubstr("seed = 5  # seed of everything ("));
    EXPECT_THAT(c.describe(), HasSubstr("base.toml:2)"));
    EXPECT_THAT(c.describe(), HasSubstr("group = 8  # members, samples (default)"));
}
TEST_F(ConfigFile, ATextIsAListOfOneAndPathsInListsAreAbsolute) {
    auto with_files = schema;
    with_files.push_back({.name = "run.files", .fallback = std::vector<std::string>{}, .meaning = "files", .is_path = true});
    const auto path = file("[run]\ntasks = \"x\"\nfiles = [\"a.h5\", \"b/c.h5\"]\n");
    const auto c = Config::resolve(path, {}, with_files);
    EXPECT_EQ(c.list("run.tasks"), std::vector<std::string>{"x"});
    EXPECT_EQ(c.list("run.files"), (std::vector<std::string>{directory_ / "a.h5", directory_ / "b/c.h5"}));
    const std::vector<std::string> bare{"run.files=d.h5"}, quoted{"run.files=\"d.h5\""};
    for (const auto& set : {bare, quoted})
        EXPECT_EQ(Config::resolve(path, set, with_files).list("run.files"), std::vector<std::string>{fs::absolute("d.h5")});
    EXPECT_THAT(refusal("[run]\ntasks = [1]\n"), HasSubstr("run.tasks must be a list of texts"));
}

TEST_F(ConfigFile, ListsOfPairs) {
    const auto path = file("[task.edit]\nsizes = [[96, 160], [128, 128]]\n");
    const auto c = Config::resolve(path, {}, schema);
    EXPECT_EQ(c.pairs("task.edit.sizes"), (Pairs{{96, 160}, {128, 128}}));
    EXPECT_THAT(c.to_toml(), HasSubstr("sizes = [[96, 160], [128, 128]]"));
    const std::vector<std::string> none{"task.edit.sizes=[]"}, one{"task.edit.sizes=[[1, 2]]"};
    EXPECT_TRUE(Config::resolve(path, none, schema).pairs("task.edit.sizes").empty());
    EXPECT_EQ(Config::resolve(path, one, schema).pairs("task.edit.sizes"), (Pairs{{1, 2}}));
    for (const char* bad : {"[[96, 160, 4]]", "[96, 160]", "[[96, \"160\"]]", "[[9.5, 160]]", "\"96x160\""})
        EXPECT_THAT(refusal(std::string("[task.edit]\nsizes = ") + bad + "\n"), HasSubstr("task.edit.sizes must be a list of pairs")) << bad;
}

TEST_F(ConfigFile, TheResolvedFileReadsBackTheSame) {
    const auto c = Config::resolve(file("[sampling]\neta = 0.1\n[task.a]\nkind = \"edit\"\n[run]\ntasks = [\"q\\\"uote\"]\n"), {}, schema);
    const auto back = Config::resolve(file(c.to_toml(), "resolved.toml"), {}, schema);
    EXPECT_EQ(back.to_toml(), c.to_toml());
    EXPECT_EQ(back.hash(), c.hash());
    const std::vector<std::string> other{"run.seed=2"};
    EXPECT_NE(Config::resolve(file(c.to_toml()), other, schema).hash(), c.hash());
}

TEST_F(ConfigFile, WhatChangesNoResultIsNotInTheHash) {
    std::vector<Key> keys = schema;
    for (Key& key : keys)
        if (key.name == "sampling.eta" || key.name == "task.*.group") key.changes_results = false;
    const auto path = file("[task.edit]\ngroup = 8\n[run]\nseed = 5\n");
    const auto c = Config::resolve(path, {}, keys);
    const std::vector<std::string> elsewhere{"sampling.eta=0.25", "task.edit.group=4"}, another{"run.seed=6", "sampling.eta=0.25"}, task{"task.t2i.group=1"};
    const auto moved = Config::resolve(path, elsewhere, keys);
    EXPECT_EQ(moved.hash(), c.hash());
    EXPECT_NE(moved.to_toml(), c.to_toml());
    EXPECT_TRUE(moved.differences(c, true).empty());
    EXPECT_THAT(moved.differences(c, false), ElementsAre(HasSubstr("sampling.eta = 0.25, was "), "task.edit.group = 4, was 8"));
    const auto other = Config::resolve(path, another, keys);
    EXPECT_NE(other.hash(), c.hash());
    EXPECT_THAT(other.differences(c, true), ElementsAre("run.seed = 6, was 5"));
    // A task more is another run, whichever way one looks.
    const auto more = Config::resolve(path, task, keys);
    EXPECT_NE(more.hash(), c.hash());
    EXPECT_THAT(more.differences(c, true), Contains(HasSubstr("task.t2i.kind")));
    EXPECT_THAT(c.differences(more, true), Contains(HasSubstr("task.t2i.kind is not there")));
}

TEST_F(ConfigFile, MistakesAreNamedWithFileLineAndKey) {
    EXPECT_THAT(refusal("[sampling]\n\neat = 0.5\n"), HasSubstr("c.toml:3: unknown key sampling.eat; the nearest known one is sampling.eta"));
    EXPECT_THAT(refusal("[smapling]\neta = 0.5\n"), HasSubstr("smapling"));
    EXPECT_THAT(refusal("[sampling]\neta = \"much\"\n"), HasSubstr("c.toml:2: sampling.eta must be a number, found"));
    EXPECT_THAT(refusal("[run]\nseed = 1.5\n"), HasSubstr("must be an integer"));
    EXPECT_THAT(refusal("[sampling]\neta = 1.5\n"), HasSubstr("must lie in [0, 1], found 1.5"));
    EXPECT_THAT(refusal("[sampling]\nsampler = \"heun\"\n"), HasSubstr("must be one of ode, flow_sde, found \"heun\""));
    EXPECT_THAT(refusal("[task.t2i]\nknd = \"t2i\"\n"), HasSubstr("nearest known one is task.*.kind"));
    EXPECT_THAT(refusal("[sampling\neta = 1\n"), HasSubstr("c.toml:1"));
    EXPECT_THAT(refusal("", {"sampling.eta"}), HasSubstr("section.key=value was expected"));
    EXPECT_THAT(refusal("", {"sampling.eta=x"}), HasSubstr("must be a number"));
    EXPECT_THAT(refusal("extends = \"c.toml\"\n"), HasSubstr("does a file extend itself"));
    EXPECT_THAT(refusal("extends = \"none.toml\"\n"), HasSubstr("none.toml is missing"));
}

}  // namespace
}  // namespace atelier::config
