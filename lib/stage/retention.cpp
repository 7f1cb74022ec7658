#include "stage/retention.hpp"

#include "io/trajectory.hpp"
#include "io/trajectory_index.hpp"
#include "stage/timeline.hpp"

namespace atelier::stage {

void retain(const Context& c, const std::filesystem::path& directory) {
    const std::string keep = c.config.text("storage.keep");
    if (keep == "all" || !std::filesystem::exists(directory / io::manifest_name)) return;
    io::Manifest manifest = io::read_manifest(directory);
    if (manifest.facts.value("kept", "all") == keep) return;
    std::vector<std::string> shards;
    for (const auto& [name, digest] : manifest.outputs)
        if (name.starts_with("shard-")) shards.push_back(name);
    manifest.facts["kept"] = keep;
    io::publish_directory(directory, [&](const std::filesystem::path& temporary) {
        manifest.outputs.clear();
        if (keep == "summary") {
            for (const std::string& name : shards) {
                auto shard = io::read_trajectory(directory / name);
                for (io::TrajectorySamples& s : shard.shapes) io::drop_states(s);
                io::write_trajectory(temporary / name, shard);
                manifest.outputs[name] = {};
            }
            for (const std::string& name : io::publish_trajectory_index(temporary, shards)) manifest.outputs[name] = {};
        }
        if (std::filesystem::exists(directory / timeline_name))
            std::filesystem::copy_file(directory / timeline_name, temporary / timeline_name);
        io::publish_manifest(temporary, manifest);
    });
}

}  // namespace atelier::stage
