#include "stage/curate.hpp"
#include "stage/judge_ranks.hpp"
#include "stage/run_main.hpp"

int main(int argc, char** argv) {
    using namespace atelier::stage;
    return run_main(argc, argv, "atelier-curate", "which prompts of a task tell members apart, and how its reward dimensions are weighed", Names::task,
                    [](const Context& context) { return with_judge_ranks(context, run_curate); });
}
