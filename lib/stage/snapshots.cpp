#include "stage/snapshots.hpp"

#include <algorithm>

#include "core/json.hpp"
#include "core/progress.hpp"
#include "io/file_io.hpp"
#include "stage/background.hpp"

namespace atelier::stage {
namespace {

namespace fs = std::filesystem;

constexpr const char* cursor_name = "snapshot.json";

std::string directory_name(std::int64_t update) { return fmt::format("update-{:06}", update); }

/// Published states, newest first.
std::vector<fs::path> published(const fs::path& directory) {
    std::vector<fs::path> found;
    if (!fs::is_directory(directory)) return found;
    for (const auto& entry : fs::directory_iterator(directory))
        if (entry.path().filename().string().starts_with("update-")) found.push_back(entry.path());
    std::sort(found.rbegin(), found.rend());
    return found;
}

/// The name of an input that only one of the two has, or that differs; empty: none does.
std::string first_difference(const nlohmann::json& a, const nlohmann::json& b) {
    for (const auto& [name, digest] : a.items())
        if (!b.contains(name) || b[name] != digest) return name;
    for (const auto& [name, digest] : b.items())
        if (!a.contains(name)) return name;
    return {};
}

}  // namespace

nlohmann::json input_hashes(const io::Manifest& manifest) {
    nlohmann::json hashes = nlohmann::json::object();
    for (const auto& [name, digest] : manifest.inputs) hashes[name] = digest.hash;
    return hashes;
}

Snapshots::Snapshots(const Context& c, fs::path directory, Trainer& trainer, std::int64_t every, nlohmann::json inputs)
    : context_(c),
      directory_(std::move(directory)),
      trainer_(trainer),
      every_(every),
      keep_(c.config.integer("checkpoint.keep")),
      inputs_(std::move(inputs)),
      newest_(trainer.updates()) {
    if (c.world->is_root() && fs::is_directory(directory_)) io::remove_temporaries(directory_);
    c.world->barrier();
}

Snapshots::~Snapshots() {
    if (written_.valid()) written_.wait();
}

std::optional<nlohmann::json> Snapshots::resume() {
    // Rank 0 chooses, so that all ranks take the same one.
    std::string name;
    if (context_.world->is_root() && !published(directory_).empty()) name = published(directory_)[0].string();
    const auto chosen = context_.world->gather(std::as_bytes(std::span(name))).at(0);
    if (chosen.empty()) return std::nullopt;
    const fs::path from(std::string(reinterpret_cast<const char*>(chosen.data()), chosen.size()));
    const auto json = parse_json(io::read_text(from / cursor_name), (from / cursor_name).string());
    ATELIER_CHECK_INPUT(json.is_object() && json.value("config_hash", nlohmann::json()) == context_.config.hash() && json.contains("cursor"),
                        "{} is damaged or of another configuration: remove {}", (from / cursor_name).string(), from.string());
    const std::string other = first_difference(inputs_, json.value("inputs", nlohmann::json::object()));
    ATELIER_CHECK_INPUT(other.empty(), "{} was trained on another {}: remove {} to train from the start", from.string(), other, directory_.string());
    trainer_.restore(from);
    newest_ = trainer_.updates();
    if (context_.world->is_root()) log_line(fmt::format("goes on from {}", from.string()));
    return json["cursor"];
}

void Snapshots::after_update(const nlohmann::json& cursor) {
    if (every_ == 0) return;
    const std::int64_t update = trainer_.updates();
    const bool is_due = update % every_ == 0;
    // A state whose turn it is waits for the one before it: one is in writing at a time.
    publish_written(is_due);
    if (is_due) write_state(cursor);
}

void Snapshots::settle(const nlohmann::json& cursor) {
    publish_written(true);
    if (every_ == 0 || trainer_.updates() == newest_) return;
    write_state(cursor);
    publish_written(true);
}

fs::path Snapshots::writing_to() const { return directory_ / fmt::format("{}{:06}-update", io::temporary_prefix, in_writing_); }

void Snapshots::write_state(const nlohmann::json& cursor) {
    in_writing_ = newest_ = trainer_.updates();
    if (context_.world->is_root()) io::make_directories(writing_to());
    context_.world->barrier();
    cursor_ = cursor;
    if (auto write = trainer_.prepare_state(writing_to(), context_)) {
        // Only a library that is safe for threads may write beside what this one reads.
        const bool beside = writes_in_background();
        written_ = std::async(beside ? std::launch::async : std::launch::deferred, std::move(write));
        if (!beside) written_.wait();
    }
}

void Snapshots::publish_written(bool waits) {
    if (in_writing_ == 0) return;
    if (waits && written_.valid()) written_.wait();
    const bool is_done = !written_.valid() || written_.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
    if (context_.world->any(!is_done)) return;
    if (written_.valid()) written_.get();  // throws what writing threw
    context_.world->barrier();             // nobody is published whose rank failed
    if (context_.world->is_root()) {
        const nlohmann::json json{{"schema", "atelier.snapshot"}, {"update", in_writing_}, {"config_hash", context_.config.hash()},
                                  {"world_size", context_.world->size()}, {"inputs", inputs_}, {"cursor", cursor_}};
        io::publish_text(writing_to() / cursor_name, json.dump(1) + "\n");
        const fs::path to = directory_ / directory_name(in_writing_);
        std::error_code error;
        fs::rename(writing_to(), to, error);
        ATELIER_CHECK_IO(!error, "cannot publish {}: {}", to.string(), error.message());
        io::flush_file(directory_);  // the name is on disk before an older state is given up
        const auto all = published(directory_);
        for (std::size_t i = static_cast<std::size_t>(keep_); i < all.size(); ++i) {
            // Renamed away first: nobody sees half of one.
            const fs::path old = directory_ / (std::string(io::temporary_prefix) + "old");
            fs::rename(all[i], old, error);
            fs::remove_all(old, error);
        }
    }
    in_writing_ = 0;
}

void Snapshots::remove() {
    if (written_.valid()) written_.wait();
    context_.world->barrier();
    if (context_.world->is_root()) remove_snapshots(directory_);
}

void remove_snapshots(const fs::path& directory) {
    std::error_code error;
    fs::remove_all(directory, error);
    ATELIER_CHECK_IO(!error, "cannot remove {}: {}", directory.string(), error.message());
}

}  // namespace atelier::stage
