#include "stage/group_summary.hpp"

#include <algorithm>
#include <cmath>

#include "eval/bootstrap.hpp"
#include "io/trajectory.hpp"
#include "stage/gather.hpp"
#include "stage/group_rollout.hpp"
#include "stage/truth_gap.hpp"

namespace atelier::stage {
namespace {

using Json = nlohmann::json;

bool is_dropped(const io::TrajectorySamples& s) {
    return std::all_of(s.status.begin(), s.status.end(), [](std::uint8_t status) {
        return status != static_cast<std::uint8_t>(io::SampleStatus::complete);
    });
}

Json interval(const std::vector<double>& values, const std::vector<std::uint64_t>& clusters) {
    const auto i = eval::bootstrap_mean({}, values, clusters);
    return {{"mean", i.mean}, {"low", i.low}, {"high", i.high}, {"n", i.n}};
}

}  // namespace

std::vector<GroupSummary> gather_groups(const Context& c, const std::filesystem::path& directory,
                                         const std::vector<std::string>& shards,
                                         const rl::SamplingSpec& spec, const PromptIndex& prompts, const std::string& policy_hash) {
    Json mine = Json::array();
    for (std::size_t unit = 0; unit < shards.size(); ++unit) {
        if (!c.is_mine(unit)) continue;
        const auto shard = io::read_trajectory(directory / shards[unit], c.config.hash(),
                                               io::TrajectoryParts::scores_and_references);
        ATELIER_CHECK_INPUT(shard.shapes.size() == 1 && shard.prompts.id.size() == 1 &&
                                shard.shapes[0].samples() == spec.members,
                            "{} does not hold one group of {}", (directory / shards[unit]).string(),
                            spec.members);
        ATELIER_CHECK_INPUT(shard.header.model_hash == policy_hash, "{} was drawn by another policy than the update starts from: weights {} expected, found {}",
                            (directory / shards[unit]).string(), policy_hash, shard.header.model_hash);
        require_same_prompt(c, prompts.at(shard.prompts.task[0], shard.prompts.id[0], directory / shards[unit]), shard.prompts, directory / shards[unit]);
        const io::TrajectorySamples& s = shard.shapes[0];
        ATELIER_CHECK_INPUT(s.trained == std::ssize(spec.trained_steps), "{} holds {} trained steps, the configuration chooses {}",
                            (directory / shards[unit]).string(), s.trained, spec.trained_steps.size());
        for (const std::int64_t step : s.trained_step)
            ATELIER_CHECK_INPUT(
                std::count(spec.trained_steps.begin(), spec.trained_steps.end(), step) == 1,
                "{}: step {} was trained, which the configuration does not choose",
                (directory / shards[unit]).string(), step);
        Json scores = Json::object(), totals = Json::array(), advantages = Json::array();
        for (const auto& [name, column] : s.reward)
            for (std::size_t m = 0; m < column.score.size(); ++m)
                if (column.present[m] != 0) {
                    ATELIER_CHECK_KIND(ErrorKind::numeric, std::isfinite(column.score[m]),
                                       "{}: {} of member {} is {}",
                                       (directory / shards[unit]).string(), name, m,
                                       column.score[m]);
                    scores[name].push_back(column.score[m]);
                }
        const auto [truth, gap] = compare_with_truth(s);
        for (std::size_t m = 0; m < s.total.size(); ++m) {
            if (std::isfinite(s.total[m])) totals.push_back(s.total[m]);
            ATELIER_CHECK_KIND(ErrorKind::numeric, std::isfinite(s.advantage[m]),
                               "{}: the advantage of member {} is {}",
                               (directory / shards[unit]).string(), m, s.advantage[m]);
            advantages.push_back(s.advantage[m]);
        }
        mine.push_back(
            {{"u", unit}, {"d", is_dropped(s)}, {"s", scores}, {"t", totals}, {"a", advantages},
             {"k", shard.prompts.task[0]}, {"p", shard.prompts.id[0]}, {"r", truth}, {"g", gap}, {"h", s.height}, {"w", s.width}});
    }
    std::vector<GroupSummary> groups(shards.size());
    for (const Json& part : gather_json(*c.world, mine))
        for (const Json& g : part) {
            GroupSummary& group = groups.at(g.at("u").get<std::size_t>());
            group = {g.at("u"), g.at("d"), g.at("k"), g.at("p"), g.at("s"),
                     g.at("r"), g.at("g"), g.at("t"), g.at("a"), {g.at("h"), g.at("w")}};
        }
    return groups;
}

Json describe_rewards(const std::vector<GroupSummary>& groups) {
    std::map<std::string, std::pair<std::vector<double>, std::vector<std::uint64_t>>> columns;
    std::map<std::string, std::pair<double, double>> spread;
    std::int64_t dropped = 0;
    const auto add = [&](const std::string& name, const std::vector<double>& values,
                         std::uint64_t unit) {
        double mean = 0, square = 0;
        for (const double v : values) {
            columns[name].first.push_back(v);
            columns[name].second.push_back(unit);
            mean += v / static_cast<double>(values.size());
        }
        for (const double v : values)
            square += (v - mean) * (v - mean) / static_cast<double>(values.size());
        if (values.size() > 1) spread[name].first += std::sqrt(square), ++spread[name].second;
    };
    for (const GroupSummary& g : groups) {
        dropped += g.dropped;
        for (const auto& [name, values] : g.scores) add(name, values, g.unit);
        add("total", g.totals, g.unit);
    }
    Json reward = Json::object(), std = Json::object();
    for (const auto& [name, column] : columns)
        if (!column.first.empty()) reward[name] = interval(column.first, column.second);
    for (const auto& [name, sums] : spread)
        std[name] = sums.second > 0 ? sums.first / sums.second : 0.0;
    return {{"reward", reward},
            {"spread", std},
            {"groups", groups.size()},
            {"groups_dropped", dropped}};
}

Json describe_columns(const std::vector<GroupSummary>& groups,
                      std::map<std::string, std::vector<double>> GroupSummary::*member) {
    std::map<std::string, std::pair<std::vector<double>, std::vector<std::uint64_t>>> columns;
    for (const GroupSummary& g : groups)
        for (const auto& [name, values] : g.*member)
            for (const double v : values) {
                columns[name].first.push_back(v);
                columns[name].second.push_back(g.unit);
            }
    Json json = Json::object();
    for (const auto& [name, column] : columns) json[name] = interval(column.first, column.second);
    return json;
}

}  // namespace atelier::stage
