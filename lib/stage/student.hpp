#pragma once

#include "distill/student_group.hpp"
#include "stage/context.hpp"

namespace atelier::stage {

/// How the student's trajectories are sampled, of sampling.height x sampling.width; of others see on_grid().
distill::StudentSpec student_spec(const Context& context, const flow::ScheduleConfig& schedule);

/// The transformer directory that a round's student is read from: the previous round's student; in
/// the first round the base (whose weights load_start() may replace). Throws Error(input) when the
/// previous round is not complete.
std::filesystem::path student_source(const Context& context, std::int64_t round);

/// Whether a round's student starts from the mean of the teachers: the first one's, with distill.start = average.
bool starts_from_average(const Context& context, std::int64_t round);

/// Gives the model what the round starts from: student_source()'s weights, or in a first round with
/// distill.start = average, the mean of the teachers in task order (fp32 sums). Returns the hash that
/// names these weights. Throws Error(usage) for an average of adapters.
std::string load_start(const Context& context, std::int64_t round, pipeline::Pipeline& model);

}  // namespace atelier::stage
