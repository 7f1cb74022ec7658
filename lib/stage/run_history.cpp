#include "stage/run_history.hpp"

#include <algorithm>
#include <tuple>

#include "io/file_io.hpp"
#include "io/manifest.hpp"
#include "io/metrics.hpp"

namespace atelier::stage {
namespace {

using Json = nlohmann::json;

void add_point(Curves& curves, const std::string& name, std::int64_t step, double wall_time, const Json& value) {
    if (value.is_number()) curves[name].push_back({step, wall_time, value.get<double>()});
    if (value.is_object() && value.contains("mean") && value["mean"].is_number()) {
        const auto bound = [&](const char* key) { return value.contains(key) && value[key].is_number() ? value[key].get<double>() : io::PlotPoint::none; };
        curves[name].push_back({step, wall_time, value["mean"].get<double>(), bound("low"), bound("high")});
    }
}

/// `record[key]`: an object of values.
void add_points(Curves& curves, const std::string& heading, const char* key, std::int64_t step, double wall_time, const Json& record) {
    if (const auto found = record.find(key); found != record.end() && found->is_object())
        for (const auto& [name, value] : found->items()) add_point(curves, heading + "/" + name, step, wall_time, value);
}

void add_update(Curves& curves, const Json& record, std::int64_t iteration, double wall_time) {
    add_points(curves, "reward", "reward", iteration, wall_time, record);
    add_points(curves, "spread", "spread", iteration, wall_time, record);
    add_points(curves, "truth", "truth", iteration, wall_time, record);
    add_points(curves, "judge_above_truth", "gap", iteration, wall_time, record);
    for (const char* key : {"loss", "gradient_norm", "clip_share", "ratio_deviation", "kl", "learning_rate", "groups_dropped"})
        add_point(curves, std::string("update/") + key, iteration, wall_time, record.value(key, Json()));
}

void add_round(Curves& curves, const Json& record, double wall_time) {
    const auto updates = record.value("updates", std::int64_t{0});
    for (const auto& [key, name] : {std::pair{"losses", "distill/loss"}, std::pair{"gradient_norms", "distill/gradient_norm"}}) {
        const Json values = record.value(key, Json::array());
        for (std::size_t i = 0; i < values.size(); ++i)
            add_point(curves, name, updates - static_cast<std::int64_t>(values.size() - 1 - i), wall_time, values[i]);
    }
    add_points(curves, "distill_round", "loss", updates, wall_time, record);
    add_point(curves, "distill/learning_rate", updates, wall_time, record.value("learning_rate", Json()));
}

}  // namespace

std::vector<JobState> job_states(const Context& c) {
    std::vector<JobState> states;
    for (Job& job : pipeline_jobs(c)) {
        JobState& state = states.emplace_back();
        const auto digit = job.name.find_last_not_of("0123456789");
        state.kind = job.name.substr(0, digit == std::string::npos ? 0 : digit + 1);
        if (state.kind.ends_with('-')) state.kind.pop_back();
        const auto output = c.run.root / job.output, account = c.run.root / "failed" / (job.name + ".txt");
        if (std::filesystem::exists(account)) state.account = io::read_text(account);
        try {
            if (std::filesystem::exists(output / io::manifest_name)) {
                const io::Manifest m = io::read_manifest(output);
                JobState::Made made{io::seconds_of(m.started_utc), io::seconds_of(m.finished_utc), m.host, m.world_size, {}};
                for (const auto& [name, digest] : m.outputs) made.outputs.push_back(name);
                state.made = std::move(made);
            }
        } catch (const Error& e) {
            state.account += e.message() + "\n";
        }
        state.job = std::move(job);
    }
    return states;
}

std::map<std::string, Curves> curves_of(const RunDirectory& run, const std::vector<JobState>& jobs) {
    std::map<std::string, double> ended;  // by output
    for (const JobState& state : jobs)
        if (state.made) ended[(run.root / state.job.output).lexically_normal()] = state.made->ended;
    std::map<std::string, Curves> all;
    for (const Json& record : io::read_metrics(run.metrics())) {
        const auto stage = record.value("stage", ""), policy = record.value("policy", "");
        const auto iteration = record.value("iteration", std::int64_t{0});
        const bool is_round = stage == "distill";
        if (!is_round && stage != "grpo") continue;
        const auto output = is_round ? run.student(iteration) : run.policy(policy, iteration);
        const auto found = ended.find(output.lexically_normal());
        if (found == ended.end()) continue;
        if (is_round)
            add_round(all[student_curves], record, found->second);
        else
            add_update(all[policy], record, iteration, found->second);
    }
    for (auto& [policy, curves] : all)
        for (auto& [name, points] : curves) std::ranges::stable_sort(points, {}, &CurvePoint::step);
    return all;
}

std::vector<io::Scalar> scalars_of(const Curves& curves) {
    std::vector<io::Scalar> scalars;
    for (const auto& [name, points] : curves)
        for (const CurvePoint& p : points) scalars.push_back({name, p.step, p.wall_time, p.value});
    std::ranges::sort(scalars, {}, [](const io::Scalar& s) { return std::tie(s.wall_time, s.step, s.tag); });
    return scalars;
}

}  // namespace atelier::stage
