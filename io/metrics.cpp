#include "io/metrics.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <sstream>

#include "core/error.hpp"
#include "core/json.hpp"
#include "io/file_io.hpp"
#include "io/publish.hpp"

namespace atelier::io {
namespace {

/// Waits for its turn; the kernel gives the turn back when the process ends.
class Turn {
  public:
    explicit Turn(const std::filesystem::path& path)
        : file_(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)) {
        ATELIER_CHECK_IO(file_ >= 0 && flock(file_, LOCK_EX) == 0, "cannot lock {}: {}",
                         path.string(), std::strerror(errno));
    }
    ~Turn() { close(file_); }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

  private:
    int file_;
};

}  // namespace

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
