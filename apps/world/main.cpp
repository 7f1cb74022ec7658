// atelier-world: pictures and prompts of the procedural world, for the maker of the miniature.
//
// pictures.bin holds raw RGBA, [N, 128, 128, 4] bytes for t2i and [N, 2, 128, 128, 4] (source, result) for
// edit and identity; scenes.jsonl one object a line {text, category, attributes}, for identity {kind, damaged, truth,
// attributes}. With --labels: what a judge is trained on.
#include <fmt/format.h>

#include <boost/program_options.hpp>
#include <filesystem>
#include <fstream>

#include "comm/run_main.hpp"
#include "config/command_line.hpp"
#include "core/error.hpp"
#include "identity_pairs.hpp"
#include "labels.hpp"
#include "world/draw.hpp"
#include "world/scene.hpp"

namespace {

using namespace atelier;
namespace po = boost::program_options;

constexpr std::array<std::string_view, 4> t2i_categories{"general", "portrait", "landscape", "typography"};
constexpr std::array<std::string_view, 2> edit_categories{"general", "portrait"};

void write_bytes(std::ofstream& out, const std::vector<std::uint8_t>& bytes) {
    out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

void write_pictures(const std::string& task, std::uint64_t count, std::uint64_t seed, const std::filesystem::path& output) {
    ATELIER_CHECK_USAGE(task == "t2i" || task == "edit" || task == "identity", "--task must be t2i, edit or identity, found '{}'",
                        task);
    std::filesystem::create_directories(output);
    std::ofstream pictures(output / "pictures.bin", std::ios::binary), scenes(output / "scenes.jsonl");
    for (std::uint64_t i = 0; i < count; ++i) {
        Random random(random_key(seed, RandomUse::world, i, task == "edit" ? 1 : task == "identity" ? 2 : 0));
        nlohmann::json line;
        if (task == "t2i") {
            const auto category = t2i_categories[i % t2i_categories.size()];
            const world::Scene scene = world::random_scene(category, random);
            line = {{"text", world::caption(scene, random)}, {"category", category}, {"attributes", to_json(scene)}};
            write_bytes(pictures, world::draw(scene));
        } else if (task == "identity") {
            const world::IdentityPair pair = world::random_identity_pair(random);
            line = {{"kind", pair.kind}, {"damaged", pair.damaged}, {"truth", pair.truth}, {"attributes", pair.attributes}};
            write_bytes(pictures, pair.source);
            write_bytes(pictures, pair.result);
        } else {
            const auto category = edit_categories[i % edit_categories.size()];
            const world::Edit edit = world::random_edit(category, random);
            line = {{"text", edit.instruction}, {"category", category}, {"attributes", to_json(edit)}};
            write_bytes(pictures, world::draw(edit.source));
            write_bytes(pictures, world::draw(edit.result));
        }
        scenes << line.dump() << '\n';
    }
    pictures.flush();
    scenes.flush();
    ATELIER_CHECK_IO(pictures.good() && scenes.good(), "cannot write to {}", output.string());
}

int run(comm::Communicator&, int argc, char** argv) {
    std::string task = "t2i", output, labels;
    std::vector<std::string> samples;
    LabelPlan plan;
    po::options_description text("atelier-world: pictures and prompts of the procedural world");
    text.add_options()("help", "this text")("task", po::value(&task)->default_value(task), "t2i, edit or identity")(
        "count", po::value(&plan.t2i)->default_value(plan.t2i), "pictures")(
        "seed", po::value(&plan.seed)->default_value(plan.seed), "seed")(
        "output", po::value(&output), "directory to write to")(
        "labels", po::value(&labels), "file of labels (*.h5) to write instead: --count and --edit-count pictures drawn whole and flawed")(
        "edit-count", po::value(&plan.edit)->default_value(plan.edit), "with --labels: edits drawn")(
        "samples", po::value(&samples)->composing(), "with --labels: directory of shards whose pictures are labelled too")(
        "annotators", po::value(&plan.annotators)->default_value(plan.annotators),
        "with --labels: who label, each in their own way; 0: the measures themselves");
    if (!config::parse_command_line(text, argc, argv)) return 0;
    if (!labels.empty()) {
        plan.samples.assign(samples.begin(), samples.end());
        write_world_labels(plan, labels);
        return 0;
    }
    ATELIER_CHECK_USAGE(!output.empty(), "--output names the directory to write to, or --labels the file (see --help)");
    write_pictures(task, plan.t2i, plan.seed, output);
    return 0;
}

}  // namespace

int main(int argc, char** argv) { return comm::run_main(argc, argv, "atelier-world", run); }
