#include "stage/evaluate.hpp"
#include "stage/judge_ranks.hpp"
#include "stage/run_main.hpp"

int main(int argc, char** argv) {
    using namespace atelier;
    using namespace atelier::stage;
    std::vector<std::string> models, guided_models;
    std::int64_t limit = 0;
    const auto evaluate = [&](const Context& context) {
        ATELIER_CHECK_USAGE(limit >= 0, "--limit must not be negative, found {}", limit);
        return with_judge_ranks(context, [&](const Context& c) { return run_evaluate(c, candidates_of(c, models, guided_models), limit); });
    };
    return run_main(argc, argv, "atelier-evaluate", "what a run has made, side by side on held-out prompts", Names::nothing,
                    evaluate, {&models, &guided_models, &limit});
}
