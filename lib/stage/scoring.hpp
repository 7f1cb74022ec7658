#pragma once

#include <future>
#include <map>
#include <memory>

#include "io/trajectory.hpp"
#include "judge/labels.hpp"
#include "reward/pool.hpp"
#include "rl/advantage.hpp"
#include "stage/context.hpp"
#include "stage/curated.hpp"
#include "stage/memory_entries.hpp"
#include "stage/timeline.hpp"

namespace atelier::stage {

/// Tiers of a kind's dimensions, by name.
using Tiers = std::map<std::string, std::int64_t>;

/// A prompt's own picture as it is shown to a scorer: as the model sees it where it has more pixels than that
/// (model::prepare_references), else as it is. Throws Error(input) for a ratio that the model cannot take.
io::Image shown_source(io::Image source, std::int64_t output_resolution);

/// The same for labels' sources: a judge learns, and is measured, from what it will be shown.
void show_sources(std::span<judge::LabelledSample> labels, std::int64_t output_resolution);

/// How a rank's pool of scoring threads is set up.
reward::PoolConfig pool_config(const config::Config& config);

/// The scorer and its pool as the configuration asks for them, on this rank or on the context's judges.
class Scoring {
  public:
    explicit Scoring(const Context& context);
    /// Hands every sample's picture over, `prompts` naming each sample's prompt. Blocks while
    /// capacity() samples are in work.
    std::vector<std::future<reward::Outcome>> submit(const std::vector<const Prompt*>& prompts,
                                                     const io::TrajectorySamples& samples);
    /// Samples of this rank that may be in work at once.
    std::size_t capacity() const { return judging_->capacity(); }
    /// What it takes of this rank's memory with pictures of `picture_bytes`.
    ScoringMemory memory(std::size_t picture_bytes) const;
    /// Where [reward] truth names a scorer: its verdicts on the same samples, in columns of their
    /// own. Throws Error(input) for prompts that it knows nothing about.
    void add_truth(const std::vector<const Prompt*>& prompts, io::TrajectorySamples& samples) const;
    /// Every dimension of a kind, lowest tier first.
    const std::vector<std::string>& dimensions(const std::string& kind) const;
    /// Their tiers.
    const Tiers& tiers(const std::string& kind) const { return tiers_.at(kind); }

  private:
    const Context& context_;
    std::unique_ptr<reward::Scorer> scorer_;  ///< null: on the judges
    std::unique_ptr<reward::Scorer> truth_;   ///< null: none
    std::unique_ptr<reward::Pool> pool_;      ///< null: on the judges
    reward::Judging* judging_;
    std::map<std::string, Tiers> tiers_;  ///< by kind
};

/// Samples of a shard that could not be scored.
std::int64_t absent_samples(const io::TrajectoryShard& shard);

/// Writes outcomes into the samples' reward columns; samples that could not be scored get status
/// reward_absent. Returns how many there are. A score that a member lacks is NaN, with the reason beside it. `timeline`, where given, gets the judging of
/// each sample of that group.
int store_outcomes(std::vector<std::future<reward::Outcome>>& outcomes,
                   io::TrajectorySamples& samples, Timeline* timeline = nullptr,
                   std::int64_t group = 0);

/// Scores of a group as the advantage takes them, tiers gated.
struct GroupScores {
    std::vector<std::string> dimensions;  ///< [K] that the group has, lowest tier first
    std::vector<float> scores;            ///< [members, K]
    std::vector<std::uint8_t> present;    ///< [members, K]
};
/// `dimensions`: all of the kind, lowest tier first; `tiers`: theirs; `gate` 0: no gating, and no tier is asked for.
GroupScores gated_scores(const io::TrajectorySamples& samples,
                         const std::vector<std::string>& dimensions, double gate, const Tiers& tiers = {});

/// Totals and advantages of a group from its scores and its category's weights (dimensions without
/// a weight weigh 1). A dimension whose scores range over less than `min_spread` keeps its place in
/// the total and loses its say in the advantage: a z-score would blow its rounding up to full size.
/// A total that no score stands behind is NaN.
void set_advantages(const GroupScores& group, const std::map<std::string, double>& weights,
                    double min_spread, io::TrajectorySamples& samples);

/// The weights of a task: pinned ones from the configuration, calibrated ones where curation made
/// some (of every dimension of a category that it saw), else 1.
CategoryWeights category_weights(const Context& context, const std::string& task);
/// The pinned ones alone. Throws Error(usage) naming key and entry for one that is not category/dimension=number (finite, at least 0), or
/// that stands twice.
CategoryWeights pinned_weights(const Context& context, const std::string& task);
/// The shares in the advantage's variance that the configuration asks calibration for; dimensions
/// not named have 1. Throws as pinned_weights.
CategoryWeights asked_shares(const Context& context, const std::string& task);
/// Throws Error(usage) naming key, entry and what there is, where task.<task>.weights or .shares names a category that no prompt of
/// task.<task>.train has, or a dimension that the scorer doesn't know; Error(input) for the prompt file.
void check_weights(const Context& context, const std::string& task);

}  // namespace atelier::stage
