#include "model/tokenizer/tokenizer.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "model/tokenizer/byte_level.hpp"

namespace atelier::model {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

/// A folder of this test, removed at the end.
class TokenizerFolder : public ::testing::Test {
  protected:
    void SetUp() override {
        folder_ = std::filesystem::temp_directory_path() /
                  ("atelier-tokenizer-" + std::to_string(::getpid()) + "-" +
                   ::testing::UnitTest::GetInstance()->current_test_info()->name());
        std::filesystem::create_directories(folder_);
    }
    void TearDown() override { std::filesystem::remove_all(folder_); }

    /// 256 bytes, then "ab", "abc"; `<s>` special and `<t>` not.
    static json small() {
        json vocab;
        for (int byte = 0; byte < 256; ++byte)
            vocab[byte_spelling(static_cast<std::uint8_t>(byte))] = byte;
        vocab["ab"] = 256;
        vocab["abc"] = 257;
        const auto added = [](int id, const char* content, bool special) {
            return json{{"id", id},          {"content", content}, {"single_word", false},
                        {"lstrip", false},   {"rstrip", false},    {"normalized", false},
                        {"special", special}};
        };
        return {{"version", "1.0"},
                {"truncation", {{"max_length", 5}}},  // of the call that saved it
                {"padding", nullptr},
                {"added_tokens",
                 {added(258, "<s>", true), added(259, "<t>", false), added(260, "<s>x", true)}},
                {"normalizer", {{"type", "NFC"}}},
                {"pre_tokenizer",
                 {{"type", "Sequence"},
                  {"pretokenizers",
                   {{{"type", "Split"},
                     {"pattern", {{"Regex", R"(\p{L}+|\s+)"}}},
                     {"behavior", "Isolated"},
                     {"invert", false}},
                    {{"type", "ByteLevel"},
                     {"add_prefix_space", false},
                     {"trim_offsets", true},
                     {"use_regex", false}}}}}},
                {"post_processor", nullptr},
                {"decoder", {{"type", "ByteLevel"}}},
                {"model",
                 {{"type", "BPE"},
                  {"byte_fallback", false},
                  {"vocab", vocab},
                  {"merges", json::array({json::array({"a", "b"}), json::array({"ab", "c"})})}}}};
    }

    Tokenizer load(const json& document) const {
        std::ofstream(folder_ / "tokenizer.json") << document.dump();
        return Tokenizer::load(folder_);
    }

    void expect_refused(const std::function<void(json&)>& change,
                        const std::vector<std::string>& named) const {
        json document = small();
        change(document);
        try {
            load(document);
            FAIL() << "expected an error that names " << named[0];
        } catch (const Error& error) {
            EXPECT_EQ(error.kind(), ErrorKind::input);
            EXPECT_THAT(error.message(), HasSubstr((folder_ / "tokenizer.json").string()));
            for (const std::string& part : named) EXPECT_THAT(error.message(), HasSubstr(part));
        }
    }

    std::filesystem::path folder_;
};

TEST_F(TokenizerFolder, MergesByRankAndKeepsAddedTokensWhole) {
    const Tokenizer tok = load(small());
    EXPECT_THAT(tok.encode("abcab"), ElementsAre(257, 256));
    EXPECT_THAT(tok.encode("ab<s>c<t>"), ElementsAre(256, 258, 'c', 259));
    EXPECT_THAT(tok.encode("<s>xab"),
                ElementsAre(260, 256));  // the longest of those that begin here
    EXPECT_EQ(tok.decode(tok.encode("ab<s>c<t>"), true), "abc<t>");
    EXPECT_THAT(tok.encode(""), ElementsAre());
    EXPECT_EQ(tok.id_of("<t>"), 259);
    EXPECT_EQ(tok.decode(std::vector<std::int32_t>{'a', 100000, -1}), "a");
}

TEST_F(TokenizerFolder, ReadsBothFormsOfMerges) {
    json document = small();
    document["model"]["merges"] = json::array({"a b", "ab c"});
    EXPECT_THAT(load(document).encode("abcab"), ElementsAre(257, 256));
}

TEST_F(TokenizerFolder, WhiteSpaceIsUnicodes) {
    const Tokenizer tok = load(small());
    EXPECT_EQ(tok.split("a\u3000\u0085 b").size(), 3u);
    EXPECT_EQ(tok.split("a\u180E b").size(), 4u);  // U+180E is no white space: a, U+180E, space, b
}

TEST_F(TokenizerFolder, NormalisedAddedTokensAreFoundAfterNfc) {
    json document = small();
    document["added_tokens"].push_back({{"id", 261}, {"content", "\u00e9!"}, {"normalized", true}});
    EXPECT_THAT(load(document).encode("ae\u0301!"), ElementsAre('a', 261));
}

TEST_F(TokenizerFolder, LongPieceMergesQuickly) {
    std::string text;
    for (int i = 0; i < 200000; ++i) text += "abc";
    EXPECT_EQ(load(small()).encode(text).size(),
              200000u);  // one piece: quadratic time would not end
}

TEST_F(TokenizerFolder, RefusesWhatItDoesNotKnow) {
    expect_refused([](json& d) { d["normalizer"]["type"] = "NFKC"; }, {"normalizer.type", "NFKC"});
    expect_refused([](json& d) { d["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Removed"; },
                   {"pre_tokenizer.pretokenizers[0].behavior", "Removed", "Isolated"});
    expect_refused(
        [](json& d) { d["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(a"; },
        {"pre_tokenizer.pretokenizers[0].pattern.Regex", "(a"});
    expect_refused([](json& d) { d["pre_tokenizer"]["pretokenizers"][0]["type"] = "Metaspace"; },
                   {"Metaspace"});
    expect_refused(
        [](json& d) { d["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = true; },
        {"add_prefix_space", "true"});
    expect_refused([](json& d) { d["pre_tokenizer"] = nullptr; }, {"pre_tokenizer", "ByteLevel"});
    expect_refused([](json& d) { d["decoder"]["type"] = "WordPiece"; },
                   {"decoder.type", "WordPiece"});
    expect_refused(
        [](json& d) {
            d["post_processor"] = {{"type", "BertProcessing"}};
        },
        {"post_processor", "BertProcessing"});
    expect_refused(
        [](json& d) {
            d["chat_template"] = {{"max_length", 5}};
        },
        {"chat_template", "max_length"});
    expect_refused([](json& d) { d["added_tokens"][1]["lstrip"] = true; },
                   {"added_tokens[1].lstrip", "true"});
    expect_refused([](json& d) { d["added_tokens"][1]["id"] = 3; }, {"id 3", "<t>"});
    expect_refused([](json& d) { d["model"]["type"] = "Unigram"; }, {"model.type", "Unigram"});
    expect_refused([](json& d) { d["model"]["byte_fallback"] = true; },
                   {"model.byte_fallback", "true"});
    expect_refused([](json& d) { d["model"]["dropout"] = 0.1; }, {"model.dropout", "0.1"});
    expect_refused([](json& d) { d["model"]["unk_token"] = "<unk>"; },
                   {"model.unk_token", "<unk>"});
    expect_refused([](json& d) { d["model"]["novelty"] = 1; }, {"model.novelty", "not known"});
    expect_refused([](json& d) { d["model"]["merges"][1] = "ab"; }, {"model.merges[1]", "\"ab\""});
    expect_refused(
        [](json& d) {
            d["model"]["merges"][1] = json::array({"x", "y"});
        },
        {"model.merges[1]", "xy"});
    expect_refused(
        [](json& d) {
            d["model"]["merges"][1] = json::array({"a", "b"});
        },
        {"model.merges[1]", "twice"});
    expect_refused([](json& d) { d["model"]["vocab"].erase("a"); }, {"model.vocab", "0x61"});
    expect_refused([](json& d) { d["model"]["vocab"]["a"] = "one"; }, {"model.vocab", "one"});
    expect_refused([](json& d) { d.erase("model"); }, {"\"model\" is missing"});
}

TEST_F(TokenizerFolder, RefusesDamagedAndMissingFiles) {
    load(small());
    std::filesystem::resize_file(folder_ / "tokenizer.json", 1000);
    EXPECT_THROW(Tokenizer::load(folder_), Error);
    std::filesystem::remove(folder_ / "tokenizer.json");
    EXPECT_THROW(Tokenizer::load(folder_), Error);
    std::ofstream(folder_ / "tokenizer_config.json") << R"({"add_bos_token": true})";
    EXPECT_THROW(load(small()), Error);
}

TEST_F(TokenizerFolder, RefusesTextThatIsNotUtf8) {
    const Tokenizer tok = load(small());
    EXPECT_THROW(tok.encode("a\xC3"), Error);
    EXPECT_THROW(tok.encode("\xED\xA0\x80"), Error);  // a surrogate
}

TEST(ByteLevel, ReplacesMaximalInvalidParts) {
    EXPECT_EQ(replace_invalid_utf8("\xF0\x9F\x98"), "\uFFFD");
    EXPECT_EQ(replace_invalid_utf8("\xE0\x80\x80"), "\uFFFD\uFFFD\uFFFD");
    EXPECT_EQ(replace_invalid_utf8("a\xE4\xB8Z\xFF"), "a\uFFFDZ\uFFFD");
    EXPECT_EQ(bytes_of_spelling("\u0120a"), " a");
    EXPECT_EQ(bytes_of_spelling("\u0120\u4e00"), "\u0120\u4e00");  // not in the alphabet: as it is
}

}  // namespace
}  // namespace atelier::model
