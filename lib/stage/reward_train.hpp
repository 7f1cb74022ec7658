#pragma once

#include "stage/context.hpp"

namespace atelier::stage {

/// Fine-tunes a judge (lib/judge) from people's labels: RUN/judge/, a transformers directory like the
/// one it started from, with report.json (how its own written judgements agree with held-out
/// labels), table.txt and the manifest. Its state is kept meanwhile under RUN/judge-training/updates/
/// (snapshots.hpp), so that a killed or stopped stage goes on from there, on any number of ranks; on the same
/// number to the same bits. Returns the process's exit code.
int run_reward_train(const Context& context);

}  // namespace atelier::stage
