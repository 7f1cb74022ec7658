#include "comm/run_main.hpp"
#include "stage/evaluate.hpp"
#include "stage/judge_ranks.hpp"
#include "stage/options.hpp"

int main(int argc, char** argv) {
    using namespace atelier;
    return comm::run_main(
        argc, argv, "atelier-evaluate", [](comm::Communicator& world, int count, char** arguments) {
            std::vector<std::string> models;
            std::int64_t limit = 0;
            const auto context = stage::make_context(
                "atelier-evaluate", "what a run has made, side by side on held-out prompts",
                stage::Names::nothing, count, arguments, world, {&models, &limit});
            if (!context) return 0;
            ATELIER_CHECK_USAGE(limit >= 0, "--limit must not be negative, found {}", limit);
            return stage::with_judge_ranks(*context, [&](const stage::Context& c) {
                return stage::run_evaluate(c, stage::candidates_of(c, models), limit);
            });
        });
}
