#include "comm/run_main.hpp"
#include "stage/options.hpp"
#include "stage/reward_train.hpp"

int main(int argc, char** argv) {
    using namespace atelier;
    return comm::run_main(argc, argv, "atelier-reward-train",
                          [](comm::Communicator& world, int count, char** arguments) {
                              const auto context = stage::make_context(
                                  "atelier-reward-train",
                                  "a judge fine-tuned from people's labels, measured on held-out "
                                  "ones",
                                  stage::Names::nothing, count, arguments, world);
                              return context ? stage::run_reward_train(*context) : 0;
                          });
}
