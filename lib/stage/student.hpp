#pragma once

#include "distill/student_group.hpp"
#include "stage/context.hpp"

namespace atelier::stage {

/// How the student's trajectories are sampled.
distill::StudentSpec student_spec(const Context& context, const pipeline::Pipeline& model);

/// The transformer directory that a round's student is read from: the previous round's student; in
/// the first round the base (whose weights load_start() may replace). Throws Error(input) when the
/// previous round is not complete.
std::filesystem::path student_source(const Context& context, std::int64_t round);

/// Fills `weights`, which hold student_source()'s, with what the round starts from: in a first
/// round with distill.start = average, the mean of the teachers in task order (fp32 sums). Returns
/// the hash that names these weights.
std::string load_start(const Context& context, std::int64_t round,
                       const nn::ParameterStore& weights);

}  // namespace atelier::stage
