#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/dit/dit.hpp"
#include "rl/group_policy.hpp"
#include "stage/context.hpp"

namespace atelier::stage {

/// What a rollout's shard of one group says without its states: enough for metrics, and for knowing which groups train.
struct GroupSummary {
    std::size_t unit = 0;
    bool dropped = false;
    std::string task, prompt;  ///< the prompt's id
    std::map<std::string, std::vector<double>> scores;  ///< present ones, by dimension
    std::map<std::string, std::vector<double>> truth;   ///< the same by [reward] truth
    std::map<std::string, std::vector<double>> gap;  ///< score - truth where both are; "all": a sample's mean
    std::vector<double> totals, advantages;
    dit::Grid target;
};

/// The groups of a rollout of all ranks, in the order of `shards`: every rank gets the same ones. `policy_hash`: of the weights that drew them. Throws
/// Error(input) naming the shard that holds something else than one group of the configuration's size and steps, was drawn by another policy or for
/// another prompt than there is now; Error(numeric) for a score or an advantage that is not finite. Collective.
std::vector<GroupSummary> gather_groups(const Context& context, const std::filesystem::path& directory, const std::vector<std::string>& shards,
                                        const rl::SamplingSpec& spec, const PromptIndex& prompts, const std::string& policy_hash);

/// Means with intervals over groups of each dimension and the total, how far members of a group differ, how many groups are dropped.
nlohmann::json describe_rewards(const std::vector<GroupSummary>& groups);

/// Means of what groups have by name, with intervals over groups.
nlohmann::json describe_columns(const std::vector<GroupSummary>& groups, std::map<std::string, std::vector<double>> GroupSummary::*member);

}  // namespace atelier::stage
