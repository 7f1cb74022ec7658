#include "stage/grpo.hpp"
#include "stage/run_main.hpp"

int main(int argc, char** argv) {
    using namespace atelier::stage;
    return run_main(argc, argv, "atelier-grpo", "one iteration's policy update from its rollout", Names::policy_and_iteration,
                    run_grpo);
}
