#pragma once

#include <optional>
#include <span>
#include <vector>

namespace atelier::eval {

/// Ranks from 1; equal values share the mean of their ranks.
std::vector<double> average_ranks(std::span<const double> values);

/// Spearman's rank correlation (Pearson's of the average ranks); none for fewer than two values or
/// if one side is constant. Throws Error(numeric) for a value that is not finite.
std::optional<double> spearman(std::span<const double> a, std::span<const double> b);

}  // namespace atelier::eval
