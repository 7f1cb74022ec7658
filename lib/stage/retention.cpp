#include "stage/retention.hpp"

#include <algorithm>

#include "io/trajectory.hpp"
#include "io/trajectory_index.hpp"
#include "stage/timeline.hpp"
#include "stage/training_state.hpp"

namespace atelier::stage {

void retain(const Context& c, const std::filesystem::path& directory) {
    const std::string keep = c.config.text("storage.keep");
    if (keep == "all" || !std::filesystem::exists(directory / io::manifest_name)) return;
    const io::Manifest manifest = io::read_manifest(directory);
    const std::string before = manifest.facts.value("kept", "all");
    if (before == keep || before == "nothing") return;
    std::vector<std::string> shards;
    for (const auto& [name, digest] : manifest.outputs)
        if (name.starts_with("shard-")) shards.push_back(name);
    io::publish_directory(directory, [&](const std::filesystem::path& temporary) {
        std::map<std::string, io::FileDigest> outputs;
        if (keep == "summary") {
            for (const std::string& name : shards) {
                auto shard = io::read_trajectory(directory / name, {}, io::TrajectoryParts::summary);
                for (io::TrajectorySamples& s : shard.shapes) io::drop_states(s);
                io::write_trajectory(temporary / name, shard);
                outputs[name] = {};
            }
            for (const std::string& name : io::publish_trajectory_index(temporary, shards)) outputs[name] = {};
        }
        if (std::filesystem::exists(directory / timeline_name))
            std::filesystem::copy_file(directory / timeline_name, temporary / timeline_name);
        io::republish_manifest(directory, temporary, std::move(outputs), "kept", keep);
    });
}

namespace {

constexpr const char* state_fact = "optimizer_state";

/// How many files it removed.
int remove_state(const std::filesystem::path& product) {
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::directory_iterator(product))
        if (TrainingState::is_file(entry.path().filename().string())) files.push_back(entry.path());
    for (const std::filesystem::path& file : files) {  // renamed away first: nobody sees half of a state
        std::error_code error;
        std::filesystem::rename(file, product / (io::temporary_prefix + file.filename().string()), error);
        ATELIER_CHECK_IO(!error, "cannot remove {}: {}", file.string(), error.message());
    }
    return static_cast<int>(files.size()) + io::remove_temporaries(product);
}

}  // namespace

void retain_states(const Context& c, std::int64_t newest, const std::function<std::filesystem::path(std::int64_t)>& product) {
    const std::int64_t kept = c.config.integer("storage.states");
    if (kept == 0) return;
    for (std::int64_t i = newest - kept; i >= 1; --i) {
        const auto directory = product(i);
        if (!std::filesystem::exists(directory / io::manifest_name)) continue;
        const bool was_said = io::read_facts(directory).contains(state_fact);
        if (!was_said) io::republish_manifest(directory, TrainingState::is_file, state_fact, "given up");
        if (remove_state(directory) == 0 && was_said) break;  // and so are the older ones
    }
}

bool gave_up_trajectories(const std::filesystem::path& directory) { return io::read_facts(directory).value("kept", "all") != "all"; }

bool gave_up_state(const std::filesystem::path& product) { return io::read_facts(product).contains(state_fact); }

void require_trajectories(const std::filesystem::path& directory, const std::string& made_by) {
    ATELIER_CHECK_INPUT(!gave_up_trajectories(directory),
                        "{}: its trajectories were given up when what they trained was published (storage.keep); remove the directory and run {} again",
                        directory.string(), made_by);
    const io::Manifest manifest = io::read_manifest(directory);
    ATELIER_CHECK_INPUT(std::ranges::any_of(manifest.outputs, [](const auto& output) { return output.first.starts_with("shard-"); }),
                        "{} names no shard", (directory / io::manifest_name).string());
}

void require_state(const std::filesystem::path& product) {
    ATELIER_CHECK_INPUT(!gave_up_state(product),
                        "{}: its optimizer's state was given up when a later one was published, so no training can go on from it; storage.states "
                        "says how many of the newest are kept", product.string());
}

}  // namespace atelier::stage
