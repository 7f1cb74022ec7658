// atelier-inspect: what a run, a stage, a shard or a checkpoint holds.
#include <boost/program_options.hpp>
#include <iostream>

#include "comm/run_main.hpp"
#include "config/command_line.hpp"
#include "core/error.hpp"
#include "stage/inspect.hpp"
#include "stage/label_sheet.hpp"
#include "stage/run_report.hpp"
#include "stage/timeline.hpp"

namespace {

namespace po = boost::program_options;
using namespace atelier;

int run(int argc, char** argv) {
    std::string path, directory, sheet, labels, timeline;
    std::vector<std::string> filled;
    bool check = false, again = false, report = false;
    po::options_description text(
        "atelier-inspect PATH: what a run, a stage's directory, a shard, a manifest or a "
        "checkpoint holds");
    text.add_options()("help", "this text")("path", po::value(&path),
                                            "what to look at (also without --path)")(
        "export", po::value(&directory),
        "write a rollout's pictures and their reasons to this directory")(
        "verify", po::bool_switch(&check), "check manifests and checksums at and below the path")(
        "label-sheet", po::value(&sheet),
        "write pictures, prompts, reasons and scores as HTML and CSV to this directory, for people "
        "to label")("filled-sheet", po::value(&filled)->composing(),
                    "a labels.csv that came back; may be repeated")(
        "labels", po::value(&labels), "label file (HDF5) to make of the filled-in sheets")(
        "timeline", po::value(&timeline),
        "draw what each rank of a rollout or a curation was busy with when, as this PNG")(
        "report", po::bool_switch(&report),
        "of a run: write report/index.html, a page with its curves, pictures, evaluations and times, and tb/ for TensorBoard")(
        "replay", po::bool_switch(&again),
        "recompute a rollout's log-probabilities; they must agree bit for bit");
    po::positional_options_description places;
    places.add("path", 1);
    if (!config::parse_command_line(text, argc, argv, places)) return 0;
    ATELIER_CHECK_USAGE(filled.empty() == labels.empty(),
                        "--filled-sheet and --labels go together (see --help)");
    if (!filled.empty()) {
        ATELIER_CHECK_USAGE(labels.ends_with(".h5") || labels.ends_with(".hdf5"), "--labels {}: a name in .h5 or .hdf5 was expected",
                            labels);
        stage::read_label_sheets(
            std::vector<std::filesystem::path>(filled.begin(), filled.end()), labels, std::cout);
        return 0;
    }
    ATELIER_CHECK_USAGE(!path.empty(), "a path is needed (see --help)");
    if (!sheet.empty()) {
        std::cout << stage::write_label_sheet(path, sheet) << " pictures in " << sheet
                  << "/index.html\n";
        return 0;
    }
    if (report) {
        const stage::RunDirectory run{std::filesystem::absolute(path).lexically_normal()};
        ATELIER_CHECK_INPUT(std::filesystem::exists(run.config()), "{} is no run: it has no config.toml", path);
        stage::publish_report(run);
        std::cout << (run.report() / "index.html").string() << '\n';
        return 0;
    }
    if (!timeline.empty()) {
        stage::write_timeline(path, timeline);
        std::cout << timeline << '\n';
        return 0;
    }
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
