#include "stage/run_model.hpp"

#include <algorithm>
#include <filesystem>
#include <set>

#include "core/json.hpp"
#include "io/file_io.hpp"
#include "io/publish.hpp"
#include "stage/gather.hpp"

namespace atelier::stage {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr const char* record_name = "model.json";

/// Names relative to the model, in their order: the same on every rank.
std::vector<std::string> files_of_model(const fs::path& model) {
    std::vector<std::string> names{"model_index.json"};
    for (const char* component : {"processor", "scheduler", "text_encoder", "tokenizer", "transformer", "vae"}) {
        if (!fs::is_directory(model / component)) continue;
        for (const auto& entry : fs::recursive_directory_iterator(model / component)) {
            const auto extension = entry.path().extension();
            if (entry.is_regular_file() && (extension == ".json" || extension == ".safetensors"))
                names.push_back(entry.path().lexically_relative(model).generic_string());
        }
    }
    std::ranges::sort(names);
    return names;
}

Json read_record(const fs::path& path) {
    if (!fs::exists(path)) return nullptr;
    const Json record = parse_json(io::read_text(path), path.string());
    ATELIER_CHECK_INPUT(record.is_object() && record.value("schema", "") == "atelier.model" && record.value("schema_version", 0) == 1 &&
                            record.contains("files") && record["files"].is_object(),
                        "{} is no record of a run's model of version 1", path.string());
    return record["files"];
}

/// A file as it is; its digest is taken from the record where size and time are the record's.
Json entry_of(const fs::path& file, const Json& recorded) {
    Json entry{{"bytes", fs::file_size(file)}, {"changed", fs::last_write_time(file).time_since_epoch().count()}};
    const bool is_known = recorded.is_object() && recorded.value("bytes", Json()) == entry["bytes"] && recorded.value("changed", Json()) == entry["changed"] &&
                          recorded.contains("hash");
    entry["hash"] = is_known ? recorded["hash"] : Json(io::digest_file(file).hash);
    return entry;
}

}  // namespace

void require_same_model(const Context& c) {
    const fs::path path = c.run.root / record_name, model = c.model();
    const Json seen = read_record(path);
    const auto names = files_of_model(model);
    Json mine{{"files", Json::object()}, {"recorded", c.world->is_root() ? seen : Json()}};
    for (std::size_t i = 0; i < names.size(); ++i)
        if (c.is_mine(i)) mine["files"][names[i]] = entry_of(model / names[i], seen.is_object() ? seen.value(names[i], Json()) : Json());
    const std::vector<Json> all = gather_json(*c.world, mine);
    Json files = Json::object();
    for (const Json& part : all) files.update(part.at("files"));
    const Json& recorded = all.at(0).at("recorded");
    if (recorded.is_object()) {
        std::set<std::string> either(names.begin(), names.end());
        for (const auto& [name, entry] : recorded.items()) either.insert(name);
        for (const std::string& name : either) {
            const bool is_there = files.contains(name), was_there = recorded.contains(name);
            const bool is_same = is_there && was_there && files[name]["bytes"] == recorded[name].value("bytes", Json()) &&
                                 files[name]["hash"] == recorded[name].value("hash", Json());
            ATELIER_CHECK_INPUT(is_same, "{}: the file {} since the run began ({}): put it back as it was, or begin a new run", (model / name).string(),
                                !was_there ? "was added" : is_there ? "was changed" : "is gone", path.string());
        }
    }
    if (!c.world->is_root()) return;
    const io::Turn turn(path.string() + ".lock");
    io::remove_temporaries(c.run.root, record_name);  // a killed stage's, whether or not there is something to say
    if (recorded == files) return;
    io::publish_text(path, Json{{"schema", "atelier.model"}, {"schema_version", 1}, {"files", files}}.dump(1) + "\n");
}

}  // namespace atelier::stage
