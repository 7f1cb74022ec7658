// Template files: the ones that ship, and what is refused with file, line and key.
#include "judge/template.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "core/error.hpp"

namespace atelier::judge {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class Templates : public ::testing::Test {
  protected:
    Templates() : folder_(fs::temp_directory_path() / fmt::format("templates-{}", ::getpid())) {
        fs::create_directories(folder_);
    }
    ~Templates() override { fs::remove_all(folder_); }
    fs::path write(const std::string& name, const std::string& text) const {
        std::ofstream(folder_ / name) << text;
        return folder_ / name;
    }
    std::string why(const std::string& text) const {
        try {
            read_template(write("t.toml", text));
        } catch (const Error& e) {
            EXPECT_EQ(e.kind(), ErrorKind::usage);
            EXPECT_THAT(e.message(), HasSubstr("t.toml"));
            return e.message();
        }
        return "nothing was wrong";
    }
    fs::path folder_;
    const std::string good_ =
        "dimension = \"alignment\"\nkind = \"t2i\"\nsystem = \"You judge.\"\nquestion = \"Asked: {prompt}\"\n"
        "rubric = \"Is it there?\"\nlevels = [\"no\", \"hardly\", \"half\", \"mostly\", \"yes\"]\nanswer = \"Score: N\"\n";
};

TEST_F(Templates, ThoseThatShip) {
    const fs::path shipped = fs::path(ATELIER_SOURCE_DIR) / "configs/judge";
    std::vector<std::string> t2i, edit;
    for (const Template& t : read_templates(shipped, "t2i")) t2i.push_back(t.dimension);
    for (const Template& t : read_templates(shipped, "edit")) {
        edit.push_back(t.dimension);
        EXPECT_TRUE(t.shows_source);
    }
    EXPECT_THAT(t2i, ::testing::ElementsAre("alignment", "aesthetics", "portrait"));
    EXPECT_THAT(edit, ::testing::ElementsAre("instruction", "identity"));
}

TEST_F(Templates, Defaults) {
    const Template t = read_template(write("t.toml", good_));
    EXPECT_EQ(t.score_tokens[4], "5");
    EXPECT_EQ(t.level[1], "hardly");
    EXPECT_FALSE(t.shows_source || t.may_not_apply);
}

TEST_F(Templates, Refused) {
    const auto without = [&](const std::string& key) {
        const auto at = good_.find(key + " =");
        return good_.substr(0, at) + good_.substr(good_.find('\n', at) + 1);
    };
    EXPECT_THAT(why(without("rubric")), HasSubstr("rubric is missing"));
    EXPECT_THAT(why(without("levels")), HasSubstr("levels must be a list of 5 texts"));
    EXPECT_THAT(why(good_ + "levles = 1\n"), HasSubstr(":8: unknown key levles"));
    EXPECT_THAT(why(good_ + "tier = \"low\"\n"), HasSubstr(":8: tier must be an integer"));
    EXPECT_THAT(why(good_ + "score_tokens = [\"1\", \"2\", \"3\", \"4\", \"4\"]\n"), HasSubstr("entry 5 of score_tokens"));
    EXPECT_THAT(why(good_ + "score_tokens = [\"1\", \"2\", \"3\", \"4\", \"4 or 5\"]\n"), HasSubstr("more than a word"));
    EXPECT_THAT(why(good_ + "reasoning_tokens = 0\n"), HasSubstr("must be 1 to 65536, found 0"));
    EXPECT_THAT(why(good_ + "tier = -1\n"), HasSubstr("counts from 0"));
    EXPECT_THAT(why(without("kind") + "kind = \"video\"\n"), HasSubstr("t2i or edit, found video"));
    EXPECT_THAT(why(without("question") + "question = \"Asked?\"\n"), HasSubstr("{prompt}"));
    EXPECT_THAT(why(good_ + "x = [\n"), HasSubstr("t.toml:"));
}

TEST_F(Templates, OneOfEachDimension) {
    write("a.toml", good_);
    EXPECT_THROW(read_templates(folder_, "edit"), Error);
    EXPECT_EQ(read_templates(folder_, "t2i").size(), 1u);
    write("b.toml", good_);
    EXPECT_THROW(read_templates(folder_, "t2i"), Error);
    EXPECT_THROW(read_templates(folder_ / "none", "t2i"), Error);
}

TEST_F(Templates, PicturesThenCommonTextThenRubric) {
    Template t = read_template(write("t.toml", good_));
    const io::Image picture(2, 2, 4), source(3, 3, 3);
    const std::vector<io::Image> sources{source, source};
    const auto plain = make_conversation(t, "a {prompt} cat", picture, sources);
    ASSERT_EQ(plain.user.size(), 2u);
    EXPECT_EQ(plain.user[0].picture, &picture);
    EXPECT_EQ(plain.user[1].text,
              "Asked: a {prompt} cat\nIs it there?\n1: no\n2: hardly\n3: half\n4: mostly\n5: yes\nScore: N");
    t.shows_source = true;
    const auto shown = make_conversation(t, "a cat", picture, sources);
    ASSERT_EQ(shown.user.size(), 4u);
    EXPECT_EQ(shown.user[0].picture, &sources[0]);
    EXPECT_EQ(shown.user[2].picture, &picture);
}

}  // namespace
}  // namespace atelier::judge
