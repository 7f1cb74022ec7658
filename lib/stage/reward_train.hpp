#pragma once

#include "stage/context.hpp"

namespace atelier::stage {

/// Fine-tunes a judge (lib/judge) from people's labels: RUN/judge/, a transformers directory like the
/// one it started from, with report.json (how its own written judgements agree with held-out
/// labels), table.txt and the manifest. State on the way is published under RUN/judge-training/, so
/// that a killed or stopped stage goes on from there to the same bits. Any number of ranks: weights
/// differ in rounding of the gradients' sum only. Returns the process's exit code.
int run_reward_train(const Context& context);

}  // namespace atelier::stage
