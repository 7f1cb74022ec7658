#include "io/metrics.hpp"

#include <sstream>

#include "core/error.hpp"
#include "core/json.hpp"
#include "io/file_io.hpp"
#include "io/publish.hpp"

namespace atelier::io {
namespace {

/// Calls each(line, record) in order.
template <typename Each>
void for_each_record(const std::filesystem::path& path, Each&& each) {
    std::istringstream in(std::filesystem::exists(path) ? read_text(path) : std::string());
    std::string line;
    for (int number = 1; std::getline(in, line); ++number) {
        nlohmann::json record = parse_json(line, fmt::format("{}:{}", path.string(), number));
        ATELIER_CHECK_INPUT(record.is_object(), "{}:{} is no JSON object", path.string(), number);
        each(line, std::move(record));
    }
}

}  // namespace

void put_metrics(const std::filesystem::path& path, const nlohmann::json& record) {
    const Turn turn(path.string() + ".lock");
    remove_temporaries(path.parent_path(), path.filename().string());
    std::string text;
    for_each_record(path, [&](const std::string& line, const nlohmann::json& old) {
        bool same = true;
        for (const char* key : {"stage", "policy", "iteration"})
            same = same && old.value(key, nlohmann::json()) == record.value(key, nlohmann::json());
        if (!same) text += line + "\n";
    });
    publish_text(path, text + record.dump() + "\n");
}

std::vector<nlohmann::json> read_metrics(const std::filesystem::path& path) {
    std::vector<nlohmann::json> records;
    for_each_record(path, [&](const std::string&, nlohmann::json record) { records.push_back(std::move(record)); });
    return records;
}

}  // namespace atelier::io
