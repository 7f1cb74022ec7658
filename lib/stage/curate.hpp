#pragma once

#include <span>
#include <string>
#include <vector>

#include "stage/context.hpp"
#include "stage/curated.hpp"
#include "stage/scoring.hpp"

namespace atelier::stage {

/// What the groups of a pool were given, in the prompts' order: [groups, members, dimensions], NaN where there is no score. Of a large pool
/// this is most of what is held.
struct PoolScores {
    std::size_t members = 0;
    std::vector<std::string> dimensions;  ///< every one of the kind, lowest tier first
    std::vector<float> values;
    std::size_t per_group() const { return members * dimensions.size(); }
    std::size_t groups() const { return values.size() / per_group(); }
    std::span<const float> of(std::size_t group) const { return std::span(values).subspan(group * per_group(), per_group()); }
    /// One group more. Throws Error(numeric) for a present score that is no number.
    void add(const GroupScores& group);
};

/// Which prompts of `context.policy`'s pool tell members apart, and every dimension's weight in every category that the groups are of
/// (rl::weigh_dimensions; pinned ones as they are). `shares`: of the advantage's variance, by category and dimension: asked, with equal weights, and with
/// these.
Curated choose_prompts(const Context& context, const PromptPool& prompts, const PoolScores& scores, nlohmann::json& shares);

/// A group of the base policy for each prompt of a task's pool (prompts/<task>/shard-*.h5), which
/// prompts tell members apart and the weights under which each dimension has its share of the
/// advantage (prompts/<task>.h5). Returns the exit code.
int run_curate(const Context& context);

}  // namespace atelier::stage
