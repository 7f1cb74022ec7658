// atelier-evaluate: models side by side on held-out prompts.
#include <boost/program_options.hpp>
#include <iostream>

#include "comm/run_main.hpp"
#include "core/error.hpp"
#include "core/parallel.hpp"
#include "stage/evaluate.hpp"
#include "stage/schema.hpp"

namespace {

namespace po = boost::program_options;
using namespace atelier;

int run(comm::Communicator& world, int argc, char** argv) {
    std::string directory;
    std::vector<std::string> names;
    std::int64_t limit = 0;
    po::options_description text("atelier-evaluate: models side by side on held-out prompts, the same seeds for all");
    text.add_options()("help", "this text")("run", po::value(&directory), "run directory (required)")(
        "model", po::value(&names)->composing(), "NAME=transformer directory; may be repeated; the base is always there")(
        "limit", po::value(&limit)->default_value(0), "at most so many prompts of a task; 0: all");
    po::variables_map values;
    try {
        po::store(po::parse_command_line(argc, argv, text), values);
        po::notify(values);
    } catch (const po::error& e) {
        ATELIER_FAIL(ErrorKind::usage, "{} (see --help)", e.what());
    }
    if (values.count("help") != 0) {
        if (world.is_root()) std::cout << text << '\n';
        return 0;
    }
    ATELIER_CHECK_USAGE(!directory.empty() && limit >= 0, "--run is required and --limit must not be negative (see --help)");
    const stage::RunDirectory run{directory};
    const auto config = config::Config::resolve(run.config(), {}, stage::schema());
    set_threads(static_cast<int>(config.integer("compute.threads")));
    stage::Models models{{"base", std::filesystem::path(config.text("run.model")) / "transformer"}};
    for (const std::string& name : names) {
        const auto equals = name.find('=');
        ATELIER_CHECK_USAGE(equals != std::string::npos && equals > 0, "--model {}: NAME=DIRECTORY was expected", name);
        models.emplace_back(name.substr(0, equals), name.substr(equals + 1));
    }
    return stage::run_evaluate(run, config, models, limit, world);
}

}  // namespace

int main(int argc, char** argv) { return atelier::comm::run_main(argc, argv, "atelier-evaluate", run); }
