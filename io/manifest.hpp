#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "io/publish.hpp"

namespace atelier::io {

/// What a stage did: published last, so that a stage is done if and only if its manifest is there and its outputs match.
struct Manifest {
    std::string stage, task;
    std::uint64_t iteration = 0;
    std::string config_hash, code_version, host, started_utc, finished_utc;
    int world_size = 1;
    std::map<std::string, FileDigest> inputs;   ///< absolute or run-relative name -> digest
    std::map<std::string, FileDigest> outputs;  ///< name relative to the manifest's directory -> digest
    std::size_t planned_bytes = 0;                    ///< memory that the stage planned for; 0: no plan was made
    nlohmann::json facts = nlohmann::json::object();  ///< the stage's own numbers
};

inline constexpr const char* manifest_name = "manifest.json";

/// Digests those of `outputs` (names relative to `directory`) whose hash is empty and publishes the manifest, with this process's largest resident memory so
/// far (peak_resident_kib).
void publish_manifest(const std::filesystem::path& directory, Manifest manifest);

/// Publishes the manifest anew without the outputs that `drops` says, and with one fact more; all else stays as it was.
void republish_manifest(const std::filesystem::path& directory, const std::function<bool(const std::string& name)>& drops, const std::string& fact,
                        const nlohmann::json& value);
/// The manifest of `from` for the directory that takes its place: with these outputs (digested as publish_manifest() does) and one fact more.
void republish_manifest(const std::filesystem::path& from, const std::filesystem::path& directory, std::map<std::string, FileDigest> outputs,
                        const std::string& fact, const nlohmann::json& value);

/// Throws Error(input) naming the file and what is wrong with it.
Manifest read_manifest(const std::filesystem::path& directory);
/// The same from its text; `path`: what errors call it.
Manifest parse_manifest(const std::string& text, const std::filesystem::path& path);
/// Its facts alone: the outputs, of which there may be many, are neither kept nor looked at. Throws Error(input).
nlohmann::json read_facts(const std::filesystem::path& directory);

/// Throws Error(input) unless the output is there and has the size that the manifest says, and, by_hash, the hash, for which it is read.
void check_output(const std::filesystem::path& directory, const std::string& name, const FileDigest& digest, bool by_hash);

/// The manifest is there and every output has its size and hash. A manifest that doesn't match is an Error(input): the
/// outputs were changed or damaged after they were published.
bool is_complete(const std::filesystem::path& directory);

std::string utc_now();  ///< "2025-01-31T12:00:00Z"
/// Seconds since 1970 of such a text. Throws Error(input) for another one.
double seconds_of(const std::string& utc);

}  // namespace atelier::io
