#pragma once

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "io/trajectory.hpp"
#include "stage/context.hpp"

namespace atelier::stage {

/// By dimension, samples that lack one left out.
using Columns = std::map<std::string, std::vector<double>>;

/// What a group's truth says, and how far the scorer lies above it where both have a score; "all":
/// each sample's mean over its dimensions. Nothing without [reward] truth. Throws Error(numeric) for
/// a truth that is no number.
std::pair<Columns, Columns> compare_with_truth(const io::TrajectorySamples& samples);

/// Reward hacking as it happens: what a policy gains by the judge and not by the truth. Adds
/// `gap_growth` to an iteration's metrics, the gap's mean ("all") less that of the policy's first
/// iteration; warns above reward.gap_warn. Above reward.gap_stop it publishes the metrics and throws
/// Error(reward_gap).
void watch_gap(const Context& context, nlohmann::json& metrics);

/// The judge's and the truth's mean by iteration, of every policy in a metrics file: an SVG with one
/// panel a policy; empty without such records.
std::string gap_curve(const std::filesystem::path& metrics);

}  // namespace atelier::stage
