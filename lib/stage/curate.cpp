#include "stage/curate.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/progress.hpp"
#include "io/metrics.hpp"
#include "rl/curation.hpp"
#include "rl/reward_total.hpp"
#include "stage/group_rollout.hpp"
#include "stage/picture_sizes.hpp"
#include "stage/run_model.hpp"
#include "stage/scorers.hpp"

namespace atelier::stage {
namespace {

std::vector<std::uint8_t> present(std::span<const float> scores) {
    std::vector<std::uint8_t> is_there;
    for (const float score : scores) is_there.push_back(std::isnan(score) ? 0 : 1);
    return is_there;
}

/// Weights of each category, so that its dimensions have the asked shares in the advantage's
/// variance (equal ones by default), but for pinned ones.
void weigh(const Context& c, const PoolScores& scores, Curated& out, nlohmann::json& shares_said) {
    const auto& dimensions = scores.dimensions;
    const std::size_t k = dimensions.size();
    rl::AdvantageConfig advantage;
    advantage.min_spread = std::max(advantage.min_spread, c.config.number("reward.min_spread"));
    std::map<std::string, rl::SpreadCollector> categories;
    for (std::size_t unit = 0; unit < scores.groups(); ++unit) {
        const auto group = scores.of(unit);
        categories.try_emplace(out.category[unit], static_cast<int>(k))
            .first->second.add_group(advantage, static_cast<int>(scores.members), group, present(group));
    }
    const CategoryWeights asked = asked_shares(c, c.policy);
    std::map<std::string, std::vector<double>> shares;
    for (const auto& [category, spread] : categories) {
        std::vector<double>& share = shares.try_emplace(category, k, 1.0).first->second;
        if (const auto own = asked.find(category); own != asked.end())
            for (std::size_t d = 0; d < k; ++d)
                if (const auto found = own->second.find(dimensions[d]); found != own->second.end()) share[d] = found->second;
        const auto seen = spread.seen();
        const auto weights = rl::weigh_dimensions(spread.covariance(), share, seen, c.config.flag("curate.calibrate")), std = spread.mean_std();
        for (std::size_t d = 0; d < k; ++d) {
            out.weights[category][dimensions[d]] = weights[d];
            out.mean_std[category][dimensions[d]] = std[d];
        }
    }
    for (const auto& [category, entries] : pinned_weights(c, c.policy))
        for (const auto& [dimension, weight] : entries) {
            out.weights[category][dimension] = weight;
            out.mean_std[category].try_emplace(dimension, 0.0);
        }
    for (const auto& [category, spread] : categories) {
        std::vector<double> equal(k), taken(k);
        const auto seen = spread.seen();
        double all = 0;
        for (std::size_t d = 0; d < k; ++d) {
            taken[d] = out.weights[category][dimensions[d]];
            if (seen[d] && taken[d] > 0) equal[d] = 1, all += shares.at(category)[d];
        }
        const auto before = spread.variance_shares(equal), after = spread.variance_shares(taken);
        for (std::size_t d = 0; d < k; ++d)
            if (equal[d] > 0)
                shares_said[category][dimensions[d]] = {
                    {"asked", all > 0 ? shares.at(category)[d] / all : 0.0}, {"equal_weights", before[d]}, {"weights", after[d]}};
    }
}

PoolScores read_scores(const Context& c, const std::filesystem::path& directory, std::size_t groups, int members,
                   const std::vector<std::string>& dimensions, const Tiers& tiers) {
    PoolScores scores{static_cast<std::size_t>(members), dimensions, {}};
    const double gate = c.kind(c.policy) == "t2i" ? c.config.number("reward.gate") : 0.0;
    for (std::size_t unit = 0; unit < groups; ++unit) {
        const auto shard = io::read_trajectory(directory / GroupRollout::shard_name(unit), c.config.hash(), io::TrajectoryParts::scores);
        scores.add(gated_scores(shard.shapes.at(0), dimensions, gate, tiers));
    }
    return scores;
}

/// What is left of a curation when its list is published.
struct Decided {
    std::string pool_hash;
    CategoryWeights weights;
    std::map<std::string, int> verdicts;
    nlohmann::json shares = nlohmann::json::object();
    std::size_t kept = 0;
};

Decided publish_curated(const Context& c, const PromptPool& prompts, const PoolScores& scores) {
    Decided decided;
    const Curated curated = choose_prompts(c, prompts, scores, decided.shares);
    io::publish_file(c.run.curated(c.policy), [&](const std::filesystem::path& temporary) { write_curated(temporary, curated); });
    for (const std::string& verdict : curated.verdict) ++decided.verdicts[verdict];
    decided.pool_hash = curated.pool_hash;
    decided.weights = curated.weights;
    decided.kept = curated.kept_numbers().size();
    return decided;
}

}  // namespace

void PoolScores::add(const GroupScores& group) {
    const std::size_t begin = values.size(), k = dimensions.size(), own = group.dimensions.size();
    values.resize(begin + per_group(), std::numeric_limits<float>::quiet_NaN());
    for (std::size_t d = 0; d < own; ++d) {
        const auto column = static_cast<std::size_t>(std::ranges::find(dimensions, group.dimensions[d]) - dimensions.begin());
        for (std::size_t m = 0; m < members; ++m) {
            if (group.present[m * own + d] == 0) continue;
            const float score = group.scores[m * own + d];
            ATELIER_CHECK_KIND(ErrorKind::numeric, !std::isnan(score), "group {}: {} of member {} is no number", begin / per_group(),
                               group.dimensions[d], m);
            values[begin + m * k + column] = score;
        }
    }
}

Curated choose_prompts(const Context& c, const PromptPool& prompts, const PoolScores& scores, nlohmann::json& shares) {
    Curated out;
    out.config_hash = c.config.hash();
    out.pool_hash = io::digest_file(c.config.text("task." + c.policy + ".train")).hash;
    for (std::size_t unit = 0; unit < prompts.size(); ++unit) {
        Prompt prompt = prompts.at(unit);
        out.number.push_back(prompt.number);
        out.id.push_back(std::move(prompt.id));
        out.text.push_back(std::move(prompt.text));
        out.category.push_back(std::move(prompt.category));
    }
    weigh(c, scores, out, shares);
    const rl::CurationRule rule{c.config.number("curate.range_min"),
                                c.config.number("curate.mean_low"),
                                c.config.number("curate.mean_high")};
    const std::size_t k = scores.dimensions.size();
    for (std::size_t unit = 0; unit < scores.groups(); ++unit) {
        std::vector<double> weights, totals;
        for (const std::string& dimension : scores.dimensions) weights.push_back(out.weights.at(out.category[unit]).at(dimension));
        const auto group = scores.of(unit);
        const auto is_there = present(group);
        for (std::size_t m = 0; m < scores.members; ++m)
            if (const auto total = rl::weighted_total(group.subspan(m * k, k), std::span(is_there).subspan(m * k, k), weights))
                totals.push_back(*total);
        const auto decision = rl::curate(rule, totals);
        out.verdict.push_back(rl::name_of(decision.verdict));
        out.kept.push_back(decision.verdict == rl::CurationVerdict::kept ? 1 : 0);
        out.mean.push_back(static_cast<float>(decision.mean));
        out.range.push_back(static_cast<float>(decision.range));
    }
    return out;
}

int run_curate(const Context& given) {
    Context c = given;
    c.iteration = 0;  // its noise is no iteration's
    const auto directory = c.run.curation(c.policy);
    const StageLock stage = begin_stage(c, directory, directory);
    if (stage.is_complete) return 0;
    require_same_model(c);
    check_weights(c, c.policy);
    io::Manifest manifest = c.new_manifest("curate");
    StageMemory memory;
    pipeline::Pipeline model(c.model(), {}, c.placement());
    rl::SamplingSpec spec = c.sampling(model);
    // What the policy will see: the same sampler, noise included.
    spec.members = static_cast<int>(c.config.integer("curate.group_size"));
    spec.micro_batch =
        std::gcd(spec.members, static_cast<int>(c.config.integer("rollout.micro_batch")));
    PromptPool prompts(c.config.text("task." + c.policy + ".train"), c.policy, c.kind(c.policy));
    if (const auto wanted = static_cast<std::size_t>(c.config.integer("curate.prompts"));
        wanted > 0 && wanted < prompts.size())
        prompts.keep(draw_prompts(prompts.size(), wanted, c.seed(), task_number(c.policy), 0));
    prompts.keep(order_by_size(c, source_of(prompts)));
    GroupRollout rollout(c, model, spec, "curate", c.base_transformer(), directory,
                         GroupRollout::States::left_out);
    rollout.reserve(source_of(prompts), memory);
    if (rollout.run(source_of(prompts), {}) == GroupRollout::End::stopped)
        return static_cast<int>(ErrorKind::requeue);
    c.world->barrier();
    if (c.world->is_root()) {
        io::remove_temporaries(c.run.curated(c.policy).parent_path(),
                               c.run.curated(c.policy).filename().string());
        const std::string& kind = c.kind(c.policy);
        const PoolScores scores = read_scores(c, directory, prompts.size(), spec.members, rollout.dimensions(kind), rollout.tiers(kind));
        const Decided decided = publish_curated(c, prompts, scores);
        manifest.outputs = rollout.take_digests();
        for (std::size_t unit = 0; unit < prompts.size(); ++unit) manifest.outputs.try_emplace(GroupRollout::shard_name(unit));
        manifest.inputs["pool"] = {0, decided.pool_hash};
        manifest.inputs["policy"] = {0, rollout.model_hash()};
        manifest.inputs.insert(rollout.scorer_files().begin(), rollout.scorer_files().end());
        manifest.facts = {{"stage", "curate"},
                          {"policy", c.policy},
                          {"iteration", 0},
                          {"prompts", prompts.size()},
                          {"verdicts", decided.verdicts},
                          {"weights", decided.weights},
                          {"variance_shares", decided.shares},
                          {"samples_without_score", rollout.absent()}};
        manifest.facts["prompts_file"] = io::digest_file(c.run.curated(c.policy)).hash;
        memory.finish(c, manifest);
        io::put_metrics(c.run.metrics(), manifest.facts);  // before the manifest: a stage that is done has its record
        io::publish_manifest(directory, manifest);
        for (const auto& [category, entries] : decided.shares.items())
            for (const auto& [dimension, s] : entries.items())
                log_line(fmt::format("curate {}: {}/{} makes {:.0f} % of the advantage's variance ({:.0f} % asked, {:.0f} % with equal weights)", c.policy,
                                     category, dimension, 100 * s["weights"].get<double>(), 100 * s["asked"].get<double>(),
                                     100 * s["equal_weights"].get<double>()));
        log_line(fmt::format("curate {}: {} of {} prompts kept", c.policy,
                             decided.kept, prompts.size()));
    }
    c.world->barrier();
    return 0;
}

}  // namespace atelier::stage
