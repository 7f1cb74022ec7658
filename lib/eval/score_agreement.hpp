#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "eval/bootstrap.hpp"

namespace atelier::eval {

/// A judge's score beside the mean label that people gave.
struct ScoredLabel {
    double score = 0, label = 0;
    std::uint64_t cluster = 0;  ///< prompt or picture: resampled as one
};

/// A statistic of a sample with its percentile interval over resampled clusters.
struct Statistic {
    double value = 0, low = 0, high = 0;
    std::int64_t n = 0;  ///< pairs of score and label
};

/// mean |score - label|. Throws Error(input) without values.
Statistic mean_absolute_error(const BootstrapConfig& config, std::span<const ScoredLabel> values);
/// Spearman's rank correlation; none where one side is constant. Resamples in which it is are left
/// out.
std::optional<Statistic> rank_agreement(const BootstrapConfig& config,
                                        std::span<const ScoredLabel> values);
/// Share of the pairs with different labels that the scores order as the labels do, equal scores
/// counting half; none where all labels are equal.
std::optional<Statistic> pairwise_accuracy(const BootstrapConfig& config,
                                           std::span<const ScoredLabel> values);

/// Values whose score lies nearest to a level.
struct CalibrationLevel {
    int level = 0;
    std::int64_t n = 0;
    double mean_score = 0;
    Statistic label;  ///< mean label
};
/// Levels 1 to 5 that have values.
std::vector<CalibrationLevel> calibration(const BootstrapConfig& config, std::span<const ScoredLabel> values);

/// Krippendorff's alpha for interval data (Computing Krippendorff's Alpha-Reliability, 2011): 1 -
/// observed / expected disagreement, the squared difference. `units`: what each annotator gave a
/// unit; units with fewer than two values are left out. None with fewer than two such units, or
/// where all values are equal.
std::optional<double> krippendorff_alpha(std::span<const std::vector<double>> units);
/// How many units it is over: those with two values or more.
std::size_t compared_units(std::span<const std::vector<double>> units);

}  // namespace atelier::eval
