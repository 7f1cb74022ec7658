#include "comm/run_main.hpp"
#include "stage/grpo.hpp"
#include "stage/options.hpp"

int main(int argc, char** argv) {
    using namespace atelier;
    return comm::run_main(argc, argv, "atelier-grpo",
                          [](comm::Communicator& world, int count, char** arguments) {
                              const auto context = stage::make_context(
                                  "atelier-grpo", "one iteration's policy update from its rollout",
                                  stage::Names::policy_and_iteration, count, arguments, world);
                              return context ? stage::run_grpo(*context) : 0;
                          });
}
