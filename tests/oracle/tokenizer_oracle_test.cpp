#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "model/tokenizer/byte_level.hpp"
#include "model/tokenizer/tokenizer.hpp"
#include "oracle_folder.hpp"

namespace atelier::model {
namespace {

using nlohmann::json;

Tokenizer tokenizer() { return Tokenizer::load(testing::oracle_folder() / "parts/tokenizer"); }

/// Calls `check` for every line; returns their number.
int for_each_line(const std::string& file, const std::function<void(const json&)>& check) {
    std::ifstream stream(testing::oracle_folder() / "parts/case-tokenizer" / file);
    int lines = 0;
    for (std::string line; std::getline(stream, line); ++lines) check(json::parse(line));
    return lines;
}

TEST(tokenizer_oracle, EncodesEveryCase) {
    const Tokenizer tok = tokenizer();
    const int lines = for_each_line("cases.jsonl", [&](const json& line) {
        const auto text = line.at("text").get<std::string>();
        const auto ids = tok.encode(text);
        EXPECT_EQ(ids, line.at("ids").get<std::vector<std::int32_t>>()) << line.at("text");
        std::vector<std::string> spellings;
        for (std::int32_t id : ids) spellings.push_back(tok.spelling(id));
        EXPECT_EQ(spellings, line.at("tokens").get<std::vector<std::string>>()) << line.at("text");
        EXPECT_EQ(tok.decode(ids), line.at("decoded").get<std::string>());
        EXPECT_EQ(tok.decode(ids, true), line.at("decoded_skip_special").get<std::string>());
    });
    EXPECT_GT(lines, 100);
}

TEST(tokenizer_oracle, DecodesBrokenUtf8) {
    const Tokenizer tok = tokenizer();
    const int lines = for_each_line("decode_only.jsonl", [&](const json& line) {
        const auto ids = line.at("ids").get<std::vector<std::int32_t>>();
        EXPECT_EQ(tok.decode(ids), line.at("decoded").get<std::string>()) << line;
        EXPECT_EQ(tok.decode(ids, true), line.at("decoded_skip_special").get<std::string>())
            << line;
    });
    EXPECT_GT(lines, 10);
}

TEST(tokenizer_oracle, SplitsAsTheExpressionSays) {
    const Tokenizer tok = tokenizer();
    const int lines = for_each_line("split.jsonl", [&](const json& line) {
        const auto text = line.at("text").get<std::string>();
        const auto pieces = tok.split(text);
        EXPECT_EQ(std::vector<std::string>(pieces.begin(), pieces.end()),
                  line.at("pieces").get<std::vector<std::string>>())
            << line.at("text");
    });
    EXPECT_GT(lines, 100);
}

/// The obvious encoder: merge the pair of lowest rank, leftmost first, until none is left.
std::vector<std::string> merged_slowly(
    std::vector<std::string> symbols,
    const std::vector<std::pair<std::string, std::string>>& merges) {
    for (;;) {
        std::size_t best_rank = merges.size(), best_at = 0;
        for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
            for (std::size_t rank = 0; rank < best_rank; ++rank) {
                if (merges[rank] == std::pair(symbols[i], symbols[i + 1]))
                    best_rank = rank, best_at = i;
            }
        }
        if (best_rank == merges.size()) return symbols;
        symbols[best_at] += symbols[best_at + 1];
        symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best_at) + 1);
    }
}

TEST(tokenizer_oracle, QueueMergesAsTheObviousLoop) {
    const Tokenizer tok = tokenizer();
    const TokenizerFile file = read_tokenizer_file(testing::oracle_folder() / "parts/tokenizer");
    for_each_line("split.jsonl", [&](const json& line) {
        for (const auto& piece : line.at("pieces")) {
            const auto text = piece.get<std::string>();
            std::vector<std::string> bytes;
            for (char c : text) bytes.push_back(byte_spelling(static_cast<std::uint8_t>(c)));
            std::vector<std::string> spellings;
            for (std::int32_t id : tok.encode(text)) spellings.push_back(tok.spelling(id));
            const bool added =
                text.find('<') != std::string::npos;  // a piece may spell an added token
            if (added) continue;
            EXPECT_EQ(spellings, merged_slowly(bytes, file.merges)) << piece;
        }
    });
}

}  // namespace
}  // namespace atelier::model
