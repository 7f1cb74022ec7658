// atelier-inspect: what a run, a stage, a shard or a checkpoint holds.
#include <boost/program_options.hpp>
#include <iostream>

#include "comm/run_main.hpp"
#include "core/error.hpp"
#include "stage/inspect.hpp"

namespace {

namespace po = boost::program_options;
using namespace atelier;

int run(int argc, char** argv) {
    std::string path, directory;
    bool check = false, again = false;
    po::options_description text(
        "atelier-inspect PATH: what a run, a stage's directory, a shard, a manifest or a "
        "checkpoint holds");
    text.add_options()("help", "this text")("path", po::value(&path),
                                            "what to look at (also without --path)")(
        "export", po::value(&directory),
        "write a rollout's pictures and their reasons to this directory")(
        "verify", po::bool_switch(&check), "check manifests and checksums at and below the path")(
        "replay", po::bool_switch(&again),
        "recompute a rollout's log-probabilities; they must agree bit for bit");
    po::positional_options_description places;
    places.add("path", 1);
    po::variables_map values;
    try {
        po::store(po::command_line_parser(argc, argv).options(text).positional(places).run(),
                  values);
        po::notify(values);
    } catch (const po::error& e) {
        ATELIER_FAIL(ErrorKind::usage, "{} (see --help)", e.what());
    }
    if (values.count("help") != 0) {
        std::cout << text << '\n';
        return 0;
    }
    ATELIER_CHECK_USAGE(!path.empty(), "a path is needed (see --help)");
    if (!directory.empty())
        std::cout << stage::export_pictures(path, directory) << " pictures in " << directory
                  << '\n';
    if (check && stage::verify(path, std::cout) > 0) return static_cast<int>(ErrorKind::input);
    if (again && stage::replay(path, std::cout) > 0) return static_cast<int>(ErrorKind::numeric);
    if (directory.empty() && !check && !again) stage::describe(path, std::cout);
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    return comm::run_main(
        argc, argv, "atelier-inspect",
        [](comm::Communicator&, int count, char** arguments) { return run(count, arguments); });
}
