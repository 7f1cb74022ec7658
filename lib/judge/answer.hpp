#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>

#include "judge/template.hpp"
#include "reward/scorer.hpp"

namespace atelier::judge {

/// Ends the reason of a score that was read from the text because the server gave no probabilities.
inline constexpr const char* parsed_mark = "[score read from the text, no usable probabilities]";
/// Probability that the five score tokens must have together at the score's place. Below, their shares say little about the score.
inline constexpr double least_score_mass = 0.5;
/// Ends the reason of a native judge's score where they have less.
inline constexpr const char* unlikely_mark = "[the scores together were unlikely]";
/// Ends a reason that took all of the template's reasoning_tokens.
inline constexpr const char* cut_mark = "[cut off]";

inline constexpr std::string_view blanks = " \t\r\n";
/// A text without any of these characters at its ends.
std::string_view trimmed(std::string_view text, std::string_view what = blanks);

/// Whether a reason says anything: a letter of any alphabet.
bool says_something(std::string_view text);

/// What a judge wrote, taken apart.
struct Answer {
    std::string reason;
    bool applies = true;
    int score = 0;             ///< 1 to 5; 0 where the dimension does not apply
    std::size_t position = 0;  ///< byte of the text at which the score stands
};

/// Takes an answer apart: the reason, then "Score:" (the last one counts) and a score token, with which it ends but for ornaments. Throws
/// Error(reward) saying what is wrong: no score, one that is none of the template's, words after it, a reason without a letter.
Answer parse_answer(const Template& asked, std::string_view text);

/// The verdict in a chat completion (OpenAI's protocol). The score is the expectation sum of s p(s)
/// over the score tokens at the score's position (docs/method.md), from `logprobs`; tokens that
/// differ in spaces only are added up, score tokens not listed count as 0. Without usable
/// probabilities (none, or less than `least_score_mass` for all scores together) it is the score written, and the reason ends with `parsed_mark`. Throws
/// Error(reward) for anything that is no such answer: another form, a refusal, an answer that was
/// cut off, and as parse_answer.
reward::Verdict read_completion(const Template& asked, const nlohmann::json& completion);

/// At most `most` bytes of a text as one line of valid UTF-8, for messages.
std::string excerpt(std::string_view text, std::size_t most = 200);

}  // namespace atelier::judge
