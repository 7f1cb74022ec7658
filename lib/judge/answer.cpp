#include "judge/answer.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <optional>

#include "core/error.hpp"

namespace atelier::judge {
namespace {

using Json = nlohmann::json;

constexpr std::string_view ornaments = " \t\r\n*`\"'_";  // that models put around words

/// Index of the score token that a text is, spaces around it aside.
std::optional<std::size_t> score_of(const Template& asked, std::string_view text) {
    const auto found =
        std::find(asked.score_tokens.begin(), asked.score_tokens.end(), trimmed(text));
    if (found == asked.score_tokens.end()) return {};
    return static_cast<std::size_t>(found - asked.score_tokens.begin());
}

const Json* member(const Json& object, const char* key) {
    if (!object.is_object()) return nullptr;
    const auto found = object.find(key);
    return found == object.end() || found->is_null() ? nullptr : &*found;
}

std::string text_of(const Json& object, const char* key) {
    const Json* value = member(object, key);
    return value != nullptr && value->is_string() ? value->get<std::string>() : std::string();
}

/// A token as it stands in the text: its bytes where they are given, since a character may be cut over several tokens.
std::string spelling_of(const Json& token) {
    const Json* bytes = member(token, "bytes");
    if (bytes == nullptr || !bytes->is_array()) return text_of(token, "token");
    std::string text;
    for (const Json& byte : *bytes) {
        if (!byte.is_number_integer() || byte < 0 || byte > 255) return text_of(token, "token");
        text += static_cast<char>(byte.get<int>());
    }
    return text;
}

/// Expectation over the score tokens at the token of `content` in which byte `position` lies; none
/// where the probabilities cannot be used.
std::optional<double> expected_score(const Template& asked, const Json& choice,
                                     const std::string& content, std::size_t position) {
    const Json* logprobs = member(choice, "logprobs");
    const Json* tokens = logprobs == nullptr ? nullptr : member(*logprobs, "content");
    if (tokens == nullptr || !tokens->is_array()) return {};
    // A server that hands out the reasoning apart lists its tokens ahead of the content's.
    std::string joined;
    std::vector<std::size_t> ends;
    for (const Json& token : *tokens) {
        joined += spelling_of(token);
        ends.push_back(joined.size());
    }
    const auto begin = joined.rfind(content);
    if (begin == std::string::npos) return {};
    const auto at = static_cast<std::size_t>(
        std::upper_bound(ends.begin(), ends.end(), begin + position) - ends.begin());
    if (at >= tokens->size()) return {};
    const Json& token = (*tokens)[at];
    if (!score_of(asked, text_of(token, "token"))) return {};
    const Json* listed = member(token, "top_logprobs");
    if (listed == nullptr || !listed->is_array() || listed->empty()) return {};
    std::array<double, levels> probability{};
    for (const Json& entry : *listed) {
        const auto score = score_of(asked, text_of(entry, "token"));
        const Json* value = member(entry, "logprob");
        if (!score || value == nullptr || !value->is_number()) continue;
        const double log = value->get<double>();
        ATELIER_CHECK_KIND(ErrorKind::reward, log <= 1e-3, "the log-probability {} is none", log);
        probability[*score] += std::exp(log);
    }
    double sum = 0, expectation = 0;
    for (std::size_t i = 0; i < levels; ++i) {
        sum += probability[i];
        expectation += static_cast<double>(i + 1) * probability[i];
    }
    if (!(sum >= least_score_mass)) return {};
    return std::clamp(expectation / sum, 1.0, static_cast<double>(levels));
}

}  // namespace

std::string_view trimmed(std::string_view text, std::string_view what) {
    const auto begin = text.find_first_not_of(what);
    if (begin == std::string_view::npos) return {};
    return text.substr(begin, text.find_last_not_of(what) - begin + 1);
}

bool says_something(std::string_view text) {
    return std::any_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) >= 0x80 || std::isalpha(static_cast<unsigned char>(c)) != 0; });
}

std::string excerpt(std::string_view text, std::size_t most) {
    std::string line(text.substr(0, most));
    for (char& c : line)
        if (static_cast<unsigned char>(c) < 0x20) c = ' ';
    // A character cut in half, or bytes that are no text, become U+FFFD.
    line = Json::parse(Json(line).dump(-1, ' ', false, Json::error_handler_t::replace));
    return text.size() > most ? line + "…" : line;
}

Answer parse_answer(const Template& asked, std::string_view text) {
    const auto fail = [&](const std::string& what) {
        ATELIER_FAIL(ErrorKind::reward, "{}: {}: \"{}\"", asked.dimension, what, excerpt(text));
    };
    const auto marker = text.rfind(score_marker);
    if (marker == std::string_view::npos) fail("the answer holds no score");
    Answer answer;
    answer.reason = std::string(trimmed(text.substr(0, marker), ornaments));
    std::replace(answer.reason.begin(), answer.reason.end(), '\0', ' ');
    const auto begin = text.find_first_not_of(
        ornaments, marker + std::string_view(score_marker).size());
    if (begin == std::string_view::npos) fail("the answer ends before its score");
    const auto end = text.find_first_of(blanks, begin);
    std::string_view word = text.substr(begin, end == text.npos ? text.npos : end - begin);
    if (end != text.npos && !trimmed(text.substr(end), " \t\r\n*`\"'_.").empty())
        fail(fmt::format("the score is not the end: {} follows", excerpt(trimmed(text.substr(end)), 40)));
    word = trimmed(word, "*`\"'_.,;");
    if (word.ends_with("/5")) word.remove_suffix(2);
    answer.position = begin;
    if (asked.may_not_apply && (word == "none" || word == "None"))
        answer.applies = false;
    else if (const auto score = score_of(asked, word))
        answer.score = static_cast<int>(*score) + 1;
    else
        fail(fmt::format("the score {} is none of {}", excerpt(word, 20),
                         fmt::join(asked.score_tokens, ", ")));
    if (!says_something(answer.reason)) fail("the answer gives no reason");
    return answer;
}

reward::Verdict read_completion(const Template& asked, const Json& completion) {
    const Json* choices = member(completion, "choices");
    ATELIER_CHECK_KIND(ErrorKind::reward,
                       choices != nullptr && choices->is_array() && !choices->empty(),
                       "{}: the server's answer is no chat completion: {}", asked.dimension,
                       excerpt(completion.dump(-1, ' ', false, Json::error_handler_t::replace)));
    const Json& choice = choices->front();
    const Json* message = member(choice, "message");
    ATELIER_CHECK_KIND(ErrorKind::reward, message != nullptr, "{}: a choice without message",
                       asked.dimension);
    const std::string refusal = text_of(*message, "refusal"),
                      finish = text_of(choice, "finish_reason");
    ATELIER_CHECK_KIND(ErrorKind::reward, refusal.empty() && finish != "content_filter",
                       "{}: the judge refused: {}", asked.dimension,
                       refusal.empty() ? "its filter stepped in" : excerpt(refusal));
    const std::string content = text_of(*message, "content");
    ATELIER_CHECK_KIND(ErrorKind::reward,
                       finish != "length" || content.find(score_marker) != std::string::npos,
                       "{}: the answer was cut off before its score: \"{}\"", asked.dimension,
                       excerpt(content));
    // A reasoning parser takes the chain of thought out of the content.
    std::string thought = text_of(*message, "reasoning_content");
    if (thought.empty()) thought = text_of(*message, "reasoning");
    thought = std::string(trimmed(thought));
    if (!thought.empty()) thought += "\n";
    const Answer answer = parse_answer(asked, thought + content);
    reward::Verdict verdict{answer.applies, static_cast<double>(std::max(answer.score, 1)),
                            answer.reason};
    ATELIER_CHECK_KIND(ErrorKind::reward, answer.position >= thought.size(),
                       "{}: the score stands in the reasoning alone", asked.dimension);
    if (!answer.applies) return verdict;
    if (const auto expected =
            expected_score(asked, choice, content, answer.position - thought.size()))
        verdict.score = *expected;
    else
        verdict.reason += std::string(" ") + parsed_mark;
    return verdict;
}

}  // namespace atelier::judge
