// What a judge's answer says: the expected score against a sum by hand, and everything that is no
// answer.
#include "judge/answer.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.hpp"
#include "server.hpp"

namespace atelier::judge {
namespace {

using ::testing::HasSubstr;
using atelier::testing::completion;
using Json = nlohmann::json;

Template make_template(bool may_not_apply = false) {
    Template t;
    t.dimension = "alignment";
    t.may_not_apply = may_not_apply;
    return t;
}

std::string why(const std::function<void()>& what) {
    try {
        what();
    } catch (const Error& e) {
        EXPECT_EQ(e.kind(), ErrorKind::reward);
        return e.message();
    }
    return "nothing was wrong";
}

TEST(Answer, ReasonAndScore) {
    for (const auto& [text, score] : std::vector<std::pair<std::string, int>>{
             {"Two cats, as asked.\nScore: 5", 5},
             {"Two cats.\n**Score: 4**\n", 4},
             {"Two cats.\nScore:3.", 3},
             {"Two cats.\nScore: 2/5", 2},
             {"Two cats.\nScore: 4 **.\n", 4},
             {"A bad Score: 9 comes first.\nScore: 1", 1}}) {
        const Answer a = parse_answer(make_template(), text);
        EXPECT_EQ(a.score, score) << text;
        EXPECT_TRUE(a.applies);
        EXPECT_EQ(text[a.position], static_cast<char>('0' + score));
        EXPECT_FALSE(a.reason.empty());
    }
    EXPECT_EQ(parse_answer(make_template(), "Two cats.\n**Score: 4**").reason, "Two cats.");
}

TEST(Answer, WordsAsScores) {
    Template t = make_template();
    t.score_tokens = {"bad", "poor", "fair", "good", "excellent"};
    EXPECT_EQ(parse_answer(t, "Fine.\nScore: good").score, 4);
    EXPECT_THAT(why([&] { parse_answer(t, "Fine.\nScore: 4"); }),
                HasSubstr("the score 4 is none of bad, poor, fair, good, excellent"));
}

TEST(Answer, WhatIsNone) {
    const auto says = [](const std::string& text, bool may_not_apply = false) {
        return why([&] { parse_answer(make_template(may_not_apply), text); });
    };
    EXPECT_THAT(says("It is lovely."), HasSubstr("holds no score: \"It is lovely.\""));
    EXPECT_THAT(says(""), HasSubstr("holds no score"));
    EXPECT_THAT(says("Lovely.\nScore:"), HasSubstr("ends before its score"));
    EXPECT_THAT(says("Lovely.\nScore: 7"), HasSubstr("the score 7 is none of 1, 2, 3, 4, 5"));
    EXPECT_THAT(says("Lovely.\nScore: 0"), HasSubstr("the score 0"));
    EXPECT_THAT(says("Lovely.\nScore: -1"), HasSubstr("the score -1"));
    EXPECT_THAT(says("Lovely.\nScore: 4.5"), HasSubstr("the score 4.5"));
    EXPECT_THAT(says("Lovely.\nScore: nan"), HasSubstr("the score nan"));
    EXPECT_THAT(says("Score: 4"), HasSubstr("gives no reason"));
    EXPECT_THAT(says(" ** \nScore: 4"), HasSubstr("gives no reason"));
    EXPECT_THAT(says(".\nScore: 4"), HasSubstr("gives no reason"));
    EXPECT_THAT(says("1.\nScore: 4"), HasSubstr("gives no reason"));
    EXPECT_THAT(says("Lovely.\nScore: 3 out of 10"), HasSubstr("the score is not the end: out of 10 follows"));
    EXPECT_THAT(says("Lovely.\nScore: 3 or 5, hard to say"), HasSubstr("the score is not the end"));
    EXPECT_THAT(says("No face.\nScore: none"), HasSubstr("the score none"));
    EXPECT_FALSE(parse_answer(make_template(true), "No face.\nScore: none").applies);
}

TEST(Answer, AReasonHasALetterOfAnyAlphabet) {
    for (const char* text : {"Lovely.", "- a", "\xc3\xa9", "\xe7\x8c\xab", "3 b"}) EXPECT_TRUE(says_something(text)) << text;
    for (const char* text : {"", " \n", ".", "1.", "**", "4/5 ..."}) EXPECT_FALSE(says_something(text)) << text;
}

TEST(Completion, TheScoreIsTheExpectation) {
    const std::vector<double> p{0.02, 0.08, 0.1, 0.5, 0.25};
    const auto verdict = read_completion(make_template(), completion("Two cats.\nScore: 4", p));
    double sum = 0, mass = 0;
    for (std::size_t i = 0; i < 5; ++i) sum += static_cast<double>(i + 1) * p[i], mass += p[i];
    EXPECT_NEAR(verdict.score, sum / mass, 1e-12);
    EXPECT_EQ(verdict.reason, "Two cats.");
    // Tokens that are not listed count as 0.
    EXPECT_NEAR(read_completion(make_template(), completion("Two cats.\nScore: 4", {0, 0, 0, 0.6, 0.2})).score,
                (4 * 0.6 + 5 * 0.2) / 0.8, 1e-12);
}

TEST(Completion, TokensThatDifferInSpacesAreAddedUp) {
    Json c = completion("Two cats.\nScore: 4", {0.1, 0.1, 0.1, 0.3, 0.1});
    auto& listed = c["choices"][0]["logprobs"]["content"].back()["top_logprobs"];
    listed.push_back({{"token", " 4"}, {"logprob", std::log(0.2)}});
    EXPECT_NEAR(read_completion(make_template(), c).score, (0.1 + 0.2 + 0.3 + 4 * 0.5 + 0.5) / 0.9,
                1e-12);
}

TEST(Completion, ACharacterCutOverTwoTokensIsJoinedFromItsBytes) {
    Json c = completion("Two \xf0\x9f\x90\xb1.\nScore: 4", {0, 0, 0, 0.5, 0.5});
    auto& tokens = c["choices"][0]["logprobs"]["content"];
    Json whole = tokens.back();
    tokens = Json::array({{{"token", "Two "}, {"bytes", {84, 119, 111, 32}}},
                          {{"token", "\xef\xbf\xbd"}, {"bytes", {0xf0, 0x9f}}},
                          {{"token", "\xef\xbf\xbd"}, {"bytes", {0x90, 0xb1}}},
                          {{"token", ".\nScore: "}, {"bytes", nullptr}}, whole});
    EXPECT_NEAR(read_completion(make_template(), c).score, 4.5, 1e-12);
}

TEST(Completion, AReasonGivenApart) {
    Json c = completion("Two cats.\nScore: 4", {0, 0, 0, 0.5, 0.5});
    auto& message = c["choices"][0]["message"];
    message["content"] = "Score: 4";
    message["reasoning_content"] = "Two cats.";
    const auto verdict = read_completion(make_template(), c);
    EXPECT_NEAR(verdict.score, 4.5, 1e-12);
    EXPECT_EQ(verdict.reason, "Two cats.");
    // Nothing but the reasoning is no answer, whatever stands in it.
    message["content"] = "";
    Template asked = make_template();
    asked.may_not_apply = true;
    for (const char* thought : {"Two cats.\nScore: 4", "No cats.\nScore: none"}) {
        message["reasoning_content"] = thought;
        EXPECT_THROW(read_completion(asked, c), Error) << thought;
    }
}

TEST(Completion, WithoutProbabilitiesTheScoreIsReadAndMarked) {
    Json without = completion("Two cats.\nScore: 4");
    Json elsewhere = completion("Two cats.\nScore: 4", {0, 0, 0, 0.5, 0.5});
    elsewhere["choices"][0]["logprobs"]["content"].back()["token"] = "4 of 5";  // not the score alone
    Json other_text = completion("Two cats.\nScore: 4", {0, 0, 0, 0.5, 0.5});
    other_text["choices"][0]["logprobs"]["content"][0]["token"] = "One";
    Json empty = completion("Two cats.\nScore: 4", {0, 0, 0, 0.5, 0.5});
    empty["choices"][0]["logprobs"]["content"].back()["top_logprobs"] = Json::array();
    const Json unlikely = completion("Two cats.\nScore: 4", {0, 0, 0, 1e-4, 0.3});
    for (const Json& c : {without, elsewhere, other_text, empty, unlikely}) {
        const auto verdict = read_completion(make_template(), c);
        EXPECT_EQ(verdict.score, 4.0);
        EXPECT_EQ(verdict.reason, std::string("Two cats. ") + parsed_mark);
    }
}

TEST(Completion, WhatIsNone) {
    const auto says = [](const Json& c) {
        return why([&] { read_completion(make_template(), c); });
    };
    EXPECT_THAT(says(Json::array()), HasSubstr("no chat completion"));
    EXPECT_THAT(says({{"error", "out of memory"}}), HasSubstr("out of memory"));
    EXPECT_THAT(says({{"choices", Json::array()}}), HasSubstr("no chat completion"));
    EXPECT_THAT(says({{"choices", {{{"index", 0}}}}}), HasSubstr("without message"));
    EXPECT_THAT(says({{"choices", {{{"message", {{"refusal", "I cannot."}}}}}}}),
                HasSubstr("the judge refused: I cannot."));
    Json c = completion("Two cats.\nScore: 4");
    c["choices"][0]["finish_reason"] = "content_filter";
    EXPECT_THAT(says(c), HasSubstr("its filter stepped in"));
    c = completion("Two cats, one of which");
    c["choices"][0]["finish_reason"] = "length";
    EXPECT_THAT(says(c), HasSubstr("cut off before its score"));
    c = completion("Two cats.\nScore: 4");
    c["choices"][0]["message"]["content"] = 4;
    EXPECT_THAT(says(c), HasSubstr("holds no score"));
    c = completion("Two cats.\nScore: 4", {0.2, 0.2, 0.2, 0.2, 0.2});
    c["choices"][0]["logprobs"]["content"].back()["top_logprobs"][1]["logprob"] = 3.0;
    EXPECT_THAT(says(c), HasSubstr("log-probability 3"));
}

TEST(Excerpt, IsOneLineOfText) {
    EXPECT_EQ(excerpt("a\nb\x01" "c"), "a b c");
    EXPECT_EQ(excerpt("caf\xc3\xa9", 4), "caf\xef\xbf\xbd…");
}

}  // namespace
}  // namespace atelier::judge
