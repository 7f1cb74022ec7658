#include "comm/run_main.hpp"
#include "stage/curate.hpp"
#include "stage/judge_ranks.hpp"
#include "stage/options.hpp"

int main(int argc, char** argv) {
    using namespace atelier;
    return comm::run_main(
        argc, argv, "atelier-curate", [](comm::Communicator& world, int count, char** arguments) {
            const auto context = stage::make_context("atelier-curate",
                                                     "which prompts of a task tell members apart, "
                                                     "and how its reward dimensions are weighed",
                                                     stage::Names::task, count, arguments, world);
            return context ? stage::with_judge_ranks(*context, stage::run_curate) : 0;
        });
}
