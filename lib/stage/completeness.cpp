#include "stage/completeness.hpp"

#include <exception>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <vector>

#include "io/file_io.hpp"
#include "io/manifest.hpp"
#include "model/dit/dit.hpp"
#include "model/vlm/vlm.hpp"
#include "nn/lora_file.hpp"
#include "stage/gather.hpp"
#include "stage/shard_writer.hpp"
#include "stage/training_state.hpp"

namespace atelier::stage {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

/// What a rank found wrong, as the others are told it.
struct Failure {
    ErrorKind kind;
    std::string message;
    [[noreturn]] void say() const { ATELIER_FAIL(kind, "{}", message); }
};

/// What goes wrong in `f` on any rank: the first such rank's error, on every rank. Collective.
std::optional<Failure> first_failure(comm::Communicator& ranks, const std::function<void()>& f) {
    Json mine;
    try {
        f();
    } catch (const Error& e) {
        mine = {static_cast<int>(e.kind()), e.message()};
    }
    for (const Json& failure : gather_json(ranks, mine))
        if (!failure.is_null()) return Failure{static_cast<ErrorKind>(failure.at(0).get<int>()), failure.at(1)};
    return std::nullopt;
}

/// What rank 0 read, or couldn't: the same on every rank. Collective.
std::string from_root(comm::Communicator& ranks, const std::function<std::string()>& read) {
    std::string text;
    const auto failure = first_failure(ranks, [&] {
        if (ranks.is_root()) text = read();
    });
    if (failure) failure->say();
    const auto bytes = ranks.gather(std::as_bytes(std::span(text))).at(0);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

bool is_average(const std::string& name) { return name.starts_with("ema/"); }

/// The manifest that names the files of a directory, and what it calls the directory.
struct Named {
    fs::path directory;
    std::string prefix;
};
std::optional<Named> manifest_of(const fs::path& directory) {
    const fs::path at = fs::absolute(directory).lexically_normal();
    if (fs::exists(at / io::manifest_name)) return Named{at, ""};
    // A moving average is a part of its policy.
    if (at.filename() == "ema" && fs::exists(at.parent_path() / io::manifest_name)) return Named{at.parent_path(), "ema/"};
    return std::nullopt;
}

std::optional<io::FileDigest> digest_in_manifest(const fs::path& directory, const std::string& name) {
    const auto named = manifest_of(directory);
    if (!named) return std::nullopt;
    const io::Manifest manifest = io::read_manifest(named->directory);
    const auto found = manifest.outputs.find(named->prefix + name);
    if (found == manifest.outputs.end()) return std::nullopt;
    io::check_output(named->directory, found->first, found->second, false);
    return found->second;
}

/// A transformer's files of weights, in the order of their names.
std::vector<fs::path> weight_files(const fs::path& transformer) {
    if (fs::exists(transformer / nn::lora_file_name)) return {transformer / nn::lora_file_name};
    return files_of(dit::open_weights(transformer));
}

/// One hash of those of a transformer's files.
std::string hash_of_files(const std::map<std::string, std::string>& hashes) {
    if (hashes.size() == 1) return hashes.begin()->second;
    std::string text;
    for (const auto& [file, hash] : hashes) text += hash;
    return io::digest_bytes(text.data(), text.size());
}

}  // namespace

bool reads_everything(const std::string&) { return true; }
bool reads_weights(const std::string& name) { return !TrainingState::is_file(name) && !is_average(name); }
bool reads_weights_and_state(const std::string& name) { return !is_average(name); }
bool reads_average(const std::string& name) { return is_average(name); }

void require_complete(comm::Communicator& ranks, const fs::path& directory, const std::string& what, Reads reads) {
    const auto path = directory / io::manifest_name;
    const auto read = [&] { return from_root(ranks, [&] { return fs::exists(path) ? io::read_text(path) : std::string(); }); };
    // A directory that is published anew while its outputs are read is looked at again.
    for (std::string seen = read();;) {
        ATELIER_CHECK_INPUT(!seen.empty(), "{} is not complete: {}", directory.string(), what);
        const auto failure = first_failure(ranks, [&] {
            const io::Manifest manifest = io::parse_manifest(seen, path);
            int turn = 0;
            for (const auto& [name, digest] : manifest.outputs) {
                const bool is_read = reads(name);
                const int reader = is_read ? turn++ % ranks.size() : 0;
                if (reader == ranks.rank()) io::check_output(directory, name, digest, is_read);
            }
        });
        if (!failure) return;
        const std::string now = read();
        if (now == seen) failure->say();
        seen = now;
    }
}

void require_unchanged(comm::Communicator& ranks, const fs::path& transformer) {
    const std::string directory = from_root(ranks, [&] {
        const auto named = manifest_of(transformer);
        return named ? named->directory.string() : std::string();
    });
    if (directory.empty()) return;
    const bool is_average = fs::absolute(transformer).lexically_normal() != directory;
    require_complete(ranks, directory, "it was changed", is_average ? reads_average : reads_weights);
}

io::FileDigest stated_digest(const fs::path& directory, const std::string& name) {
    const auto stated = digest_in_manifest(directory, name);
    return stated ? *stated : io::digest_file(directory / name);
}

std::string weights_hash(comm::Communicator& ranks, const fs::path& transformer) {
    Json mine = Json::object();
    const auto failure = first_failure(ranks, [&] {
        const auto files = weight_files(transformer);
        for (std::size_t i = static_cast<std::size_t>(ranks.rank()); i < files.size(); i += static_cast<std::size_t>(ranks.size()))
            mine[files[i].string()] = stated_digest(transformer, files[i].lexically_relative(transformer).string()).hash;
    });
    if (failure) failure->say();
    std::map<std::string, std::string> hashes;
    for (const Json& theirs : gather_json(ranks, mine)) hashes.merge(theirs.get<std::map<std::string, std::string>>());
    return hash_of_files(hashes);
}

std::optional<std::string> stated_weights_hash(const fs::path& transformer) {
    const auto named = manifest_of(transformer);
    if (!named) return std::nullopt;
    std::map<std::string, std::string> hashes;
    for (const auto& [name, digest] : io::read_manifest(named->directory).outputs) {
        if (!name.starts_with(named->prefix)) continue;
        const std::string file = name.substr(named->prefix.size());
        if (file == nn::lora_file_name) return digest.hash;
        if (file.ends_with(".safetensors") && file.find('/') == std::string::npos) hashes[file] = digest.hash;
    }
    if (hashes.empty()) return std::nullopt;
    return hash_of_files(hashes);
}

std::vector<fs::path> files_of(const io::Safetensors& stored) {
    std::set<fs::path> files;
    for (const auto& [name, tensor] : stored.tensors()) files.insert(tensor.file->path());
    return {files.begin(), files.end()};
}

std::map<std::string, io::FileDigest> judge_weight_digests(comm::Communicator& ranks, const fs::path& judge) {
    std::map<std::string, io::FileDigest> mine;
    const auto failure = first_failure(ranks, [&] {
        const auto files = files_of(vlm::open_weights(judge));
        for (std::size_t i = static_cast<std::size_t>(ranks.rank()); i < files.size(); i += static_cast<std::size_t>(ranks.size()))
            mine[files[i].filename().string()] = io::digest_file(files[i]);
    });
    if (failure) failure->say();
    return gather_digests(ranks, mine);
}

}  // namespace atelier::stage
