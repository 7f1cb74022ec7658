#include "stage/dump.hpp"
#include "stage/run_main.hpp"

int main(int argc, char** argv) {
    using namespace atelier::stage;
    return run_main(argc, argv, "atelier-teacher-dump", "the student's trajectories on one teacher's prompts, with the teacher's velocities", Names::task_and_round,
                    run_teacher_dump);
}
