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

void put_metrics(const std::filesystem::path& path, const nlohmann::json& record) {
    const Turn turn(path.string() + ".lock");
    remove_temporaries(path.parent_path(), path.filename().string());
    std::istringstream in(std::filesystem::exists(path) ? read_text(path) : std::string());
    std::string text, line;
    for (int number = 1; std::getline(in, line); ++number) {
        const auto old = parse_json(line, fmt::format("{}:{}", path.string(), number));
        ATELIER_CHECK_INPUT(old.is_object(), "{}:{} is no JSON object", path.string(), number);
        bool same = true;
        for (const char* key : {"stage", "policy", "iteration"})
            same = same && old.value(key, nlohmann::json()) == record.value(key, nlohmann::json());
        if (!same) text += line + "\n";
    }
    publish_text(path, text + record.dump() + "\n");
}

}  // namespace atelier::io
