#include "comm/run_main.hpp"
#include "stage/dump.hpp"
#include "stage/options.hpp"

int main(int argc, char** argv) {
    using namespace atelier;
    return comm::run_main(argc, argv, "atelier-teacher-dump",
                          [](comm::Communicator& world, int count, char** arguments) {
                              const auto context = stage::make_context(
                                  "atelier-teacher-dump",
                                  "the student's trajectories on one teacher's prompts, with the "
                                  "teacher's velocities",
                                  stage::Names::task_and_round, count, arguments, world);
                              return context ? stage::run_teacher_dump(*context) : 0;
                          });
}
