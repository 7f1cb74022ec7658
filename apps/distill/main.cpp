#include "comm/run_main.hpp"
#include "stage/distill.hpp"
#include "stage/options.hpp"

int main(int argc, char** argv) {
    using namespace atelier;
    return comm::run_main(argc, argv, "atelier-distill",
                          [](comm::Communicator& world, int count, char** arguments) {
                              const auto context = stage::make_context(
                                  "atelier-distill",
                                  "one round's training of the student on the teachers' velocities",
                                  stage::Names::round, count, arguments, world);
                              return context ? stage::run_distill(*context) : 0;
                          });
}
