#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "io/image/image.hpp"

namespace atelier::judge {

inline constexpr int levels = 5;  ///< of the scale: scores 1 to 5

/// What a judge's answer has ahead of its score; what comes before it is the reason.
inline constexpr const char* score_marker = "Score:";

/// How one dimension is asked for, a TOML file:
///
///     dimension = "alignment"        # name of the reward dimension
///     kind = "t2i"                   # of the prompts it judges: t2i or edit
///     tier = 0                       # lower tiers gate higher ones
///     system = "…"                   # system turn
///     question = "… {prompt} …"      # beside the pictures; the same text in every dimension of a
///                                    # kind lets them share the pass over pictures and question
///     rubric = "…"                   # what is judged
///     levels = ["…", …]              # what scores 1, 2, 3, 4, 5 stand for
///     answer = "…"                   # how to answer: reason, then "Score: " and a score token
///     shows_source = false           # whether the prompt's pictures are shown
///     may_not_apply = false          # whether "Score: none" is an answer: the dimension is absent
///     score_tokens = ["1", …]        # what stands for the scores 1, 2, 3, 4, 5
///     reasoning_tokens = 256         # at most, before the score
struct Template {
    std::filesystem::path path;
    std::string dimension, kind;
    std::int64_t tier = 0;
    std::string system, question, rubric, answer;
    std::array<std::string, levels> level;
    bool shows_source = false, may_not_apply = false;
    std::array<std::string, levels> score_tokens{"1", "2", "3", "4", "5"};
    std::int64_t reasoning_tokens = 256;
};

/// Throws Error(usage) naming file, line and key: missing or unknown keys, wrong types, a question
/// without {prompt}, not five different levels or score tokens.
Template read_template(const std::filesystem::path& file);

/// The templates of a kind among a directory's *.toml, by tier, then by name. Throws Error(usage)
/// if there is none, or two of one dimension.
std::vector<Template> read_templates(const std::filesystem::path& directory,
                                     const std::string& kind);

/// A part of the user's turn: a picture, or text where there is none.
struct Part {
    const io::Image* picture = nullptr;
    std::string text;
};
/// What is put to a judge: the user's turn, pictures first, then what is the same for all
/// dimensions, then the dimension's rubric.
struct Conversation {
    std::string system;
    std::vector<Part> user;
};
/// `sources`: the prompt's own pictures. What it refers to must outlive the result.
Conversation make_conversation(const Template& asked, const std::string& prompt,
                               const io::Image& picture, const std::vector<io::Image>& sources);

}  // namespace atelier::judge
