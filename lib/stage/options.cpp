#include "stage/options.hpp"

#include <algorithm>
#include <boost/program_options.hpp>
#include <span>

#include "config/command_line.hpp"
#include "core/parallel.hpp"
#include "stage/schema.hpp"

namespace atelier::stage {

namespace po = boost::program_options;

std::unique_ptr<Context> make_context(const char* program, const char* what, Names names, int argc,
                                      char** argv, comm::Communicator& world,
                                      const ExtraOptions& extra) {
    std::string run, policy;
    std::int64_t iteration = 1;
    po::options_description text(fmt::format("{}: {}", program, what));
    auto add = text.add_options();
    add("help", "this text")("run", po::value(&run)->required(),
                             "run directory; atelier-plan makes it");
    if (names == Names::task || names == Names::task_and_round)
        add("task", po::value(&policy)->required(), "task of the configuration");
    if (names == Names::policy_and_iteration)
        add("policy", po::value(&policy)->required(), "task whose teacher is trained, or mix")(
            "iteration", po::value(&iteration)->required(), "from 1");
    if (names == Names::round || names == Names::task_and_round)
        add("round", po::value(&iteration)->required(), "of the distillation, from 1");
    if (extra.models != nullptr)
        add("model", po::value(extra.models)->composing(),
            "NAME=transformer directory, beside what the run has made; may be repeated; results in eval-NAME");
    if (extra.guided_models != nullptr)
        add("guided-model", po::value(extra.guided_models)->composing(), "the same, sampled with the teachers' guidance");
    if (extra.limit != nullptr)
        add("limit", po::value(extra.limit)->default_value(0),
            "at most so many prompts of a task, results in eval-limit-N; 0: all");
    if (!config::parse_command_line(text, argc, argv, {}, world.is_root())) return nullptr;
    ATELIER_CHECK_USAGE(iteration >= 1, "iterations and rounds count from 1, found {}", iteration);
    const RunDirectory directory{run};
    ATELIER_CHECK_USAGE(std::filesystem::exists(directory.config()),
                        "{} is missing: make the run with atelier-plan --config FILE --run {}",
                        directory.config().string(), run);
    auto context = std::make_unique<Context>(
        Context{directory, config::Config::resolve(directory.config(), {}, schema()), &world,
                policy, iteration});
    // atelier-plan may publish another one at any time.
    const std::string text_read = context->config.to_toml(), read = io::digest_bytes(text_read.data(), text_read.size());
    for (const auto& theirs : world.gather(std::as_bytes(std::span(read))))
        ATELIER_CHECK_KIND(ErrorKind::requeue, std::ranges::equal(theirs, std::as_bytes(std::span(read))),
                           "{} was changed while the ranks started: run the stage again", directory.config().string());
    const auto tasks = context->config.tasks();
    const bool is_mix = policy == mix_policy && names == Names::policy_and_iteration;
    ATELIER_CHECK_USAGE(
        policy.empty() || is_mix || std::find(tasks.begin(), tasks.end(), policy) != tasks.end(),
        "{} has no [task.{}]", directory.config().string(), policy);
    set_threads(static_cast<int>(context->config.integer("compute.threads")));
    return context;
}

}  // namespace atelier::stage
