#pragma once

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "io/image/image.hpp"
#include "stage/prompts.hpp"

namespace atelier::stage {

/// One picture of a held-out prompt and its scores.
struct EvaluatedSample {
    io::Image picture;                     ///< of prompts on the contact sheet; else empty
    std::map<std::string, double> scores;  ///< dimensions present
    std::map<std::string, double> truth;   ///< the same by [reward] truth; empty without one
    std::optional<double> total() const;   ///< mean of `scores`; none: no dimension is present
};

/// One task's samples of every model: [models][prompts * pictures of a prompt].
struct EvaluatedTask {
    std::vector<Prompt> prompts;
    std::size_t pictures = 1;  ///< of a prompt
    std::vector<std::vector<EvaluatedSample>> models;
};

/// {"models": {name: {"<task>/<dimension>": {mean, low, high, n}, "<task>/<dimension>/<category>":
/// ...}}, "gain": {name: {"<task>/<dimension>": {mean, low, high, n}}} (differences to the first
/// model, paired by prompt and seed), "elo": {name: {elo, low, high}}, "elo_regularised": whether half a win each way was added to
/// every pair of models (eval/bradley_terry.hpp)}, 95 % bootstrap bounds, prompts resampled. Totals are means of the dimensions present; gains and Elo compare two pictures by the dimensions that both
/// have. Pictures without any score are left out (of gains and Elo where they have none in common); where there are some,
/// "without_score": {name: {"<task>": how many}}.
nlohmann::json evaluation_summary(const std::vector<std::string>& models,
                                  const std::map<std::string, EvaluatedTask>& tasks);

/// The same of the truth's scores; nothing where there are none.
nlohmann::json truth_summary(const std::vector<std::string>& models,
                             const std::map<std::string, EvaluatedTask>& tasks);

/// The summary's dimensions as lines of text, one column a model, and Elo.
std::string evaluation_table(const nlohmann::json& summary, const std::vector<std::string>& models);

/// Most prompts on a contact sheet.
inline constexpr std::size_t sheet_rows = 12;
/// Indices of the prompts on the contact sheet, rising.
std::vector<std::size_t> shown_prompts(const EvaluatedTask& task);

/// A PNG: one row a prompt, its reference picture first where it has one, one column a model. References are shrunk to the models'
/// pictures, and those, in `task` itself, to what a PNG can hold.
void write_contact_sheet(const std::filesystem::path& path, const std::vector<std::string>& models,
                         EvaluatedTask& task);

}  // namespace atelier::stage
