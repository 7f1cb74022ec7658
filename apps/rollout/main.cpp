#include "stage/judge_ranks.hpp"
#include "stage/rollout.hpp"
#include "stage/run_main.hpp"

int main(int argc, char** argv) {
    using namespace atelier::stage;
    return run_main(argc, argv, "atelier-rollout", "one iteration's groups: sampled, scored, published", Names::policy_and_iteration,
                    [](const Context& context) { return with_judge_ranks(context, run_rollout); });
}
