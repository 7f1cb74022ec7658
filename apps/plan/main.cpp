// atelier-plan: resolves a configuration, shows it and its jobs, and makes a run directory from it.
#include <boost/program_options.hpp>
#include <fmt/ranges.h>

#include <iostream>
#include <sstream>

#include "comm/run_main.hpp"
#include "config/command_line.hpp"
#include "config/config.hpp"
#include "core/error.hpp"
#include "core/parallel.hpp"
#include "core/progress.hpp"
#include "io/publish.hpp"
#include "stage/dag.hpp"
#include "stage/memory_plan.hpp"
#include "stage/picture_sizes.hpp"
#include "stage/plan_checks.hpp"
#include "stage/rerun.hpp"
#include "stage/schema.hpp"
#include "stage/storage_plan.hpp"

namespace {

namespace po = boost::program_options;
using namespace atelier;

/// A run that is there must be of a configuration with the same results.
void require_same_results(const stage::RunDirectory& run, const config::Config& config) {
    if (!std::filesystem::exists(run.config())) return;
    const auto changed = config.differences(config::Config::resolve(run.config(), {}, stage::schema()), true);
    ATELIER_CHECK_USAGE(changed.empty(), "{} is a run of another configuration ({}): choose another directory", run.root.string(), fmt::join(changed, "; "));
}

/// Makes the run's directory; what differs in one that is there is new from here on.
void make_run(const stage::RunDirectory& run, const config::Config& config,
              const std::vector<stage::Job>& jobs) {
    io::make_directories(run.root / "logs");
    const io::DirectoryLock lock(run.root);
    for (const char* name : {"config.toml", "pipeline.json", "pipeline.tsv", "slurm.tsv"})
        io::remove_temporaries(run.root, name);
    require_same_results(run, config);  // of a run that another plan has made meanwhile
    if (std::filesystem::exists(run.config())) {
        const auto before = config::Config::resolve(run.config(), {}, stage::schema());
        const auto elsewhere = config.differences(before, false);
        if (!elsewhere.empty()) {
            io::publish_text(run.config(), config.to_toml());
            log_line(fmt::format("{}: changed for the stages that start from now on: {}", run.config().string(), fmt::join(elsewhere, "; ")));
        }
    } else {
        io::publish_text(run.config(), config.to_toml());
    }
    io::publish_text(run.root / "pipeline.json", to_json(jobs, config));
    io::publish_text(run.root / "pipeline.tsv", to_tsv(jobs, config));
    io::publish_text(run.root / "slurm.tsv", stage::slurm_settings(config));
}

int run(comm::Communicator& world, int argc, char** argv) {
    std::string file, directory, device_memory, from;
    stage::MemoryQuestion question;
    std::vector<std::string> overrides;
    bool print = false, dot = false, storage = false, memory = false, slurm = false;
    po::options_description text(
        "atelier-plan [CONFIG]: a configuration resolved, its jobs, and the run directory made from it");
    text.add_options()("help", "this text")("config", po::value(&file),
                                            "TOML file (also without --config; default: that of --run)")(
        "set", po::value(&overrides)->composing(),
        "section.key=value, over the file's; may be repeated")("run", po::value(&directory),
                                                               "run directory to make")(
        "slurm", po::bool_switch(&slurm), "refuse also what the [slurm] sections' jobs would refuse")(
        "from", po::value(&from), "with --run: what is removed of it before these stages (commas between), and all that come after them, are made again, a "
                                  "path a line; refused where they need what storage.keep or storage.states gave up; nothing is removed here")(
        "print-config", po::bool_switch(&print),
        "show every key with its meaning, unit and origin")("dot", po::bool_switch(&dot),
                                                            "show the jobs as Graphviz")(
        "storage", po::bool_switch(&storage), "show the disk space that a run needs")(
        "memory", po::bool_switch(&memory), "show the memory that a rank of each stage needs; no weight is read")(
        "ranks", po::value(&question.ranks)->default_value(question.ranks), "ranks that --memory counts with")(
        "device-memory", po::value(&device_memory), "memory of a rank that --memory compares with, as 141GiB")(
        "prompt-tokens", po::value(&question.prompt_tokens)->default_value(question.prompt_tokens), "tokens of a prompt that --memory counts with; 0: those of the prompt files, or 256")(
        "references", po::value(&question.references)->default_value(question.references), "reference pictures of edits, where no prompt file is read");
    po::positional_options_description places;
    places.add("config", 1);
    if (!config::parse_command_line(text, argc, argv, places)) return 0;
    const stage::RunDirectory run{
        directory.empty() ? "run" : std::filesystem::absolute(directory).lexically_normal()};
    if (file.empty() && !directory.empty() && std::filesystem::exists(run.config()))
        file = run.config().string();
    ATELIER_CHECK_USAGE(!file.empty(), "a configuration is needed (see --help)");
    stage::Context context{run, config::Config::resolve(file, overrides, stage::schema()), &world,
                           "", 1};
    stage::check_settings(context);
    for (const std::string& task : context.config.tasks()) stage::configured_sizes(context.config, task);
    const auto jobs = stage::pipeline_jobs(context);
    if (slurm) stage::check_resources(context, jobs);
    ATELIER_CHECK_USAGE(from.empty() || !directory.empty(), "--from needs --run, the run whose stages are made again");
    std::vector<std::string> names;
    std::istringstream list(from);
    for (std::string name; std::getline(list, name, ',');) names.push_back(name);
    if (!directory.empty()) {
        stage::check_files(context);
        require_same_results(run, context.config);
        stage::require_current(context, jobs, names);
        const auto again = stage::outputs_made_again(run, jobs, names);
        make_run(run, context.config, jobs);
        for (const auto& path : again) std::cout << path.string() << '\n';
        if (!from.empty()) return 0;
    }
    if (print) std::cout << context.config.describe();
    if (storage) std::cout << stage::describe_storage(context);
    if (memory) {
        set_threads(static_cast<int>(context.config.integer("compute.threads")));  // each decodes in buffers of its own
        if (!device_memory.empty()) question.device_memory = stage::parse_bytes(device_memory);
        std::cout << stage::describe_memory(context, question);
    }
    if (dot) std::cout << to_dot(jobs);
    if (!print && !dot && !storage && !memory) std::cout << to_text(jobs);
    return 0;
}

}  // namespace

int main(int argc, char** argv) { return comm::run_main(argc, argv, "atelier-plan", run); }
