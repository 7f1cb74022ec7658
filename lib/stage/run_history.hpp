#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "io/report/event_file.hpp"
#include "io/report/plot.hpp"
#include "stage/context.hpp"
#include "stage/dag.hpp"

namespace atelier::stage {

/// A job of a run, and what became of it.
struct JobState {
    struct Made {
        double began = 0, ended = 0;  ///< seconds since 1970; of the attempt that completed it, not of those that were stopped before
        std::string host;
        int ranks = 1;
        std::vector<std::string> outputs;  ///< names relative to the job's output
    };
    Job job;
    std::string kind;          ///< its name without the number: "grpo-t2i"
    std::optional<Made> made;  ///< it is complete
    std::string account;       ///< how it failed (failed/), what is wrong with its manifest; empty: nothing
};

/// Every job of a run, in the pipeline's order, from manifests alone: outputs are not compared.
std::vector<JobState> job_states(const Context& context);

/// One value of a curve.
struct CurvePoint {
    std::int64_t step = 0;  ///< the iteration; of the student the update
    double wall_time = 0;   ///< when the job that made it ended, seconds since 1970
    double value = 0, low = io::PlotPoint::none, high = io::PlotPoint::none;
};
/// By name: "reward/total", "update/loss"; by step, rising.
using Curves = std::map<std::string, std::vector<CurvePoint>>;

/// What the distillation's curves stand under, beside the policies'; its "policy" in metrics.jsonl.
inline constexpr const char* student_curves = "student";

/// What metrics.jsonl says of the run's complete updates and rounds, by policy. Records of jobs that are not
/// complete (they are being made again) are left out.
std::map<std::string, Curves> curves_of(const RunDirectory& run, const std::vector<JobState>& jobs);

/// The same as TensorBoard's points, in the order in which they were made.
std::vector<io::Scalar> scalars_of(const Curves& curves);

}  // namespace atelier::stage
