#pragma once

#include "stage/context.hpp"

namespace atelier::stage {

/// One round's trajectories of the student on one teacher's prompts, with that teacher's velocity
/// (under the teacher's guidance) at every state: opd/round-NN/teacher-<task>/shard-*.h5, one a
/// prompt. Only one of the two is in memory at a time. Returns the exit code.
int run_teacher_dump(const Context& context);

}  // namespace atelier::stage
