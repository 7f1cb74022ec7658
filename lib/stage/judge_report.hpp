#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "judge/labels.hpp"
#include "judge/question_maker.hpp"
#include "stage/context.hpp"

namespace atelier::stage {

/// Has the judge of a directory write judgements of held-out pictures, divided over the ranks, and compares them with the labels:
/// {"annotators": {"<kind>/<dimension>": {"alpha", "units"}},
/// "dimensions": {"<kind>/<dimension>": {"all": {"mae", "spearman", "pairwise_accuracy", each
/// {"value", "low", "high", "n"}, "calibration": [{"level", "n", "mean_score",
/// "mean_label": {"value", "low", "high", "n"}}],
/// "failed", "absent": {"right", "missed", "wrong"}}, "<category>": …}}} with 95 % bootstrap bounds over
/// pictures; a statistic that does not exist (one side constant) is left out. `absent` counts verdicts that
/// a dimension does not apply: where labels say so too, where labels say so and the judge gave a score, and where
/// labels have a score; the other statistics are of what both scored. The same on every rank.
struct HeldoutReport {
    nlohmann::json report;
    std::string judgements;  ///< CSV: what it said of every label, beside the label and its rationale
};
HeldoutReport judge_heldout(const Context& context, const std::filesystem::path& directory, const std::vector<judge::LabelledSample>& heldout);

/// Bytes that judging takes beside the labels themselves.
Bytes judging_bytes(const Context& context, const judge::QuestionMaker& model, const std::vector<judge::LabelledSample>& heldout);

/// The same as text, one line a dimension and category.
std::string judge_table(const nlohmann::json& report);

}  // namespace atelier::stage
