#include "comm/run_main.hpp"
#include "stage/judge_ranks.hpp"
#include "stage/options.hpp"
#include "stage/rollout.hpp"

int main(int argc, char** argv) {
    using namespace atelier;
    return comm::run_main(
        argc, argv, "atelier-rollout", [](comm::Communicator& world, int count, char** arguments) {
            const auto context = stage::make_context(
                "atelier-rollout", "one iteration's groups: sampled, scored, published",
                stage::Names::policy_and_iteration, count, arguments, world);
            return context ? stage::with_judge_ranks(*context, stage::run_rollout) : 0;
        });
}
