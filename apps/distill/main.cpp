#include "stage/distill.hpp"
#include "stage/run_main.hpp"

int main(int argc, char** argv) {
    using namespace atelier::stage;
    return run_main(argc, argv, "atelier-distill", "one round's training of the student on the teachers' velocities", Names::round,
                    run_distill);
}
