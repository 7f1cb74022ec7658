#include "io/manifest.hpp"

#include <sys/resource.h>

#include <ctime>

#include "core/error.hpp"
#include "core/json.hpp"
#include "core/process.hpp"
#include "io/file_io.hpp"
#include "io/lookup.hpp"

namespace atelier::io {
namespace {

using Json = nlohmann::json;
namespace fs = std::filesystem;

Json to_json(const FileDigest& digest) { return {{"size", digest.size}, {"xxh3_128", digest.hash}}; }

Json to_json(const std::map<std::string, FileDigest>& files) {
    Json json = Json::object();
    for (const auto& [name, digest] : files) json[name] = to_json(digest);
    return json;
}

/// Appends the same as text, one space an object: of many outputs the values themselves would take several times the memory.
void append(std::string& text, const std::map<std::string, FileDigest>& files) {
    text += '{';
    for (const auto& [name, digest] : files) {
        text += fmt::format("{}\n  {}: ", text.back() == '{' ? "" : ",", Json(name).dump());
        for (const char c : to_json(digest).dump(1)) {
            text += c;
            if (c == '\n') text += "  ";
        }
    }
    text += files.empty() ? "}" : "\n }";
}

std::map<std::string, FileDigest> files_from(const Json& json) {
    std::map<std::string, FileDigest> files;
    for (const auto& [name, entry] : json.items())
        files[name] = {entry.at("size").get_ref<const Json::number_unsigned_t&>(), entry.at("xxh3_128").get<std::string>()};
    return files;
}

std::string text_of(const fs::path& directory) {
    const fs::path path = directory / manifest_name;
    ATELIER_CHECK_INPUT(fs::exists(path), "{} is missing: the stage was not finished", path.string());
    return read_text(path);
}

/// Of those whose hash is empty.
void digest_missing(const fs::path& directory, std::map<std::string, FileDigest>& outputs) {
    for (auto& [name, digest] : outputs)
        if (digest.hash.empty()) digest = digest_file(directory / name);
}

void check_schema(const Json& json, const fs::path& path) {
    ATELIER_CHECK_INPUT(json.is_object() && json.value("schema", Json()) == "atelier.manifest", "{} is no manifest", path.string());
}

}  // namespace

void check_output(const fs::path& directory, const std::string& name, const FileDigest& digest, bool by_hash) {
    const fs::path path = directory / name;
    ATELIER_CHECK_INPUT(stays_inside(name), "{}: output '{}' lies outside the directory", (directory / manifest_name).string(), name);
    ATELIER_CHECK_INPUT(is_file(path), "cannot open {}: no file stands there", path.string());
    if (!by_hash) {
        const std::uint64_t size = fs::file_size(path);
        ATELIER_CHECK_INPUT(size == digest.size, "{} does not match its manifest: {} bytes expected, found {}", path.string(), digest.size, size);
        return;
    }
    const FileDigest found = digest_file(path);
    ATELIER_CHECK_INPUT(found == digest, "{} does not match its manifest: {} bytes with hash {} expected, found {} with {}", path.string(),
                        digest.size, digest.hash, found.size, found.hash);
}

std::string utc_now() {
    const std::time_t now = std::time(nullptr);
    std::tm parts{};
    gmtime_r(&now, &parts);
    char text[32];
    std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &parts);
    return text;
}

double seconds_of(const std::string& utc) {
    std::tm parts{};
    const char* end = strptime(utc.c_str(), "%Y-%m-%dT%H:%M:%SZ", &parts);
    ATELIER_CHECK_INPUT(end != nullptr && *end == '\0', "'{}' is no time of the form 2025-01-31T12:00:00Z", utc);
    return static_cast<double>(timegm(&parts));
}

void publish_manifest(const fs::path& directory, Manifest m) {
    digest_missing(directory, m.outputs);
    m.host = process().host;
    m.world_size = process().world_size;
    m.finished_utc = utc_now();
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    const Json json{{"schema", "atelier.manifest"}, {"schema_version", 1}, {"stage", m.stage}, {"task", m.task},
                    {"iteration", m.iteration}, {"config_hash", m.config_hash}, {"code_version", m.code_version},
                    {"host", m.host}, {"world_size", m.world_size}, {"started_utc", m.started_utc},
                    {"finished_utc", m.finished_utc}, {"exit", 0}, {"planned_kib", m.planned_bytes / 1024},
                    {"peak_resident_kib", usage.ru_maxrss}, {"inputs", to_json(m.inputs)}, {"facts", m.facts}};
    const std::string others = json.dump(1) + "\n";
    // Among the keys in their order; only those of the outermost object are one space in.
    const std::size_t place = others.find("\n \"peak_resident_kib\":");
    std::string text = others.substr(0, place) + "\n \"outputs\": ";
    append(text, m.outputs);
    publish_text(directory / manifest_name, text.append(",").append(others, place));
}

void republish_manifest(const fs::path& directory, const std::function<bool(const std::string&)>& drops, const std::string& fact, const Json& value) {
    Manifest m = read_manifest(directory);
    std::erase_if(m.outputs, [&](const auto& output) { return drops(output.first); });
    republish_manifest(directory, directory, std::move(m.outputs), fact, value);
}

void republish_manifest(const fs::path& from, const fs::path& directory, std::map<std::string, FileDigest> outputs, const std::string& fact, const Json& value) {
    const fs::path path = from / manifest_name;
    const std::string text = read_text(path);
    parse_manifest(text, path);  // says what is wrong with it
    Json json = parse_json(text, path.string());
    digest_missing(directory, outputs);
    json["outputs"] = to_json(outputs);
    json["facts"][fact] = value;
    publish_text(directory / manifest_name, json.dump(1) + "\n");
}

Manifest read_manifest(const fs::path& directory) { return parse_manifest(text_of(directory), directory / manifest_name); }

Json read_facts(const fs::path& directory) {
    const fs::path path = directory / manifest_name;
    const Json json = parse_json_without("outputs", text_of(directory), path.string());
    check_schema(json, path);
    ATELIER_CHECK_INPUT(json.contains("facts"), "{} is damaged: it has no facts", path.string());
    return json["facts"];
}

Manifest parse_manifest(const std::string& text, const fs::path& path) {
    const Json json = parse_json(text, path.string());
    check_schema(json, path);
    try {
        Manifest m;
        m.stage = json.at("stage");
        m.task = json.at("task");
        m.iteration = json.at("iteration").get_ref<const Json::number_unsigned_t&>();
        m.config_hash = json.at("config_hash");
        m.code_version = json.at("code_version");
        m.host = json.at("host");
        const auto& ranks = json.at("world_size").get_ref<const Json::number_unsigned_t&>();
        ATELIER_CHECK_INPUT(ranks <= INT32_MAX, "{}: a world of {} ranks", path.string(), ranks);
        m.world_size = static_cast<int>(ranks);
        m.started_utc = json.at("started_utc");
        m.finished_utc = json.at("finished_utc");
        m.inputs = files_from(json.at("inputs"));
        m.outputs = files_from(json.at("outputs"));
        m.facts = json.at("facts");
        return m;
    } catch (const Json::exception& e) {
        ATELIER_FAIL(ErrorKind::input, "{} is damaged: {}", path.string(), e.what());
    }
}

bool is_complete(const fs::path& directory) {
    if (!fs::exists(directory / manifest_name)) return false;
    // Outputs are read one after another: a directory that is published anew meanwhile is looked at again.
    for (std::string seen = read_text(directory / manifest_name);;) {
        try {
            for (const auto& [name, digest] : read_manifest(directory).outputs) check_output(directory, name, digest, true);
            return true;
        } catch (const Error&) {
            if (!fs::exists(directory / manifest_name)) return false;
            const std::string now = read_text(directory / manifest_name);
            if (now == seen) throw;
            seen = now;
        }
    }
}

}  // namespace atelier::io
