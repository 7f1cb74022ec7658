#pragma once

#include "stage/context.hpp"

namespace atelier::stage {

/// One round's training of the student on all teachers' dumps of the round: optimizer steps on
/// batches of prompts that are drawn over all teachers, without guidance. Publishes
/// opd/round-NN/student as a whole and puts a line into the metrics. Returns the exit code.
int run_distill(const Context& context);

}  // namespace atelier::stage
