// atelier-plan: resolves a configuration, shows it, and makes a run directory from it.
#include <boost/program_options.hpp>
#include <iostream>

#include "comm/run_main.hpp"
#include "config/config.hpp"
#include "core/error.hpp"
#include "io/publish.hpp"
#include "stage/context.hpp"
#include "stage/schema.hpp"

namespace {

namespace po = boost::program_options;
using namespace atelier;

int run(int argc, char** argv) {
    std::string file, directory;
    std::vector<std::string> overrides;
    bool print = false;
    po::options_description text("atelier-plan: a configuration, resolved, and the run directory made from it");
    text.add_options()("help", "this text")("config", po::value(&file), "TOML file (required)")(
        "set", po::value(&overrides)->composing(), "section.key=value, over the file's; may be repeated")(
        "run", po::value(&directory), "run directory to make")("print-config", po::bool_switch(&print),
                                                               "show every key with its meaning, unit and origin");
    po::variables_map values;
    try {
        po::store(po::parse_command_line(argc, argv, text), values);
        po::notify(values);
    } catch (const po::error& e) {
        ATELIER_FAIL(ErrorKind::usage, "{} (see --help)", e.what());
    }
    if (values.count("help") != 0) {
        std::cout << text << '\n';
        return 0;
    }
    ATELIER_CHECK_USAGE(!file.empty(), "--config is required (see --help)");
    const auto config = config::Config::resolve(file, overrides, stage::schema());
    if (print) std::cout << config.describe();
    if (directory.empty()) return 0;
    const stage::RunDirectory run{directory};
    io::make_directories(run.root);
    if (std::filesystem::exists(run.config())) {
        const auto before = config::Config::resolve(run.config(), {}, stage::schema());
        ATELIER_CHECK_USAGE(before.hash() == config.hash(), "{} is a run of another configuration: choose another directory",
                            directory);
        return 0;
    }
    io::publish_text(run.config(), config.to_toml());
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    return comm::run_main(argc, argv, "atelier-plan", [](comm::Communicator&, int count, char** arguments) { return run(count, arguments); });
}
