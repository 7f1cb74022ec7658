#pragma once

#include "distill/student_spec.hpp"
#include "stage/context.hpp"

namespace atelier::stage {

/// How the student's trajectories are sampled, of sampling.height x sampling.width; of others see on_grid(). Throws Error(usage) where
/// sampler, eta and loss make no sense together.
distill::StudentSpec student_spec(const Context& context, const flow::ScheduleConfig& schedule);

/// What a round's student starts from.
struct StudentStart {
    /// Transformer directory: the previous round's student; in the first round the base.
    std::filesystem::path source;
    /// In a first round with distill.start = average: those whose mean replaces the source's weights, in task order.
    std::vector<std::filesystem::path> teachers;
    std::string hash;  ///< names these weights
};
/// Finds it, and compares what of it the stage `reads` with its hashes. Throws Error(input) when a round or policy before is not
/// complete, Error(usage) for an average of adapters. Collective.
StudentStart student_start(const Context& context, std::int64_t round, Reads reads);

/// Gives the model these weights: an average's are fp32 sums in task order.
void load_start(const StudentStart& start, pipeline::Pipeline& model);

}  // namespace atelier::stage
