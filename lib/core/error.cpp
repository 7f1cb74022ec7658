#include "core/error.hpp"

#include "core/process.hpp"

namespace atelier {
namespace {

std::string describe(const std::string& message, const char* expression, const char* file, int line) {
    const Process& me = process();
    const std::string path = file;
    const auto slash = path.find_last_of('/');
    std::string place = fmt::format("{}:{}", path.substr(slash == std::string::npos ? 0 : slash + 1), line);
    if (expression != nullptr) place += fmt::format(", failed: {}", expression);
    return fmt::format("{} [{}; rank {} of {} on {}]", message, place, me.rank, me.world_size, me.host);
}

}  // namespace

Error::Error(ErrorKind kind, const std::string& message, const char* expression, const char* file, int line)
    : std::runtime_error(describe(message, expression, file, line)), kind_(kind), message_(message) {}

void throw_error(ErrorKind kind, const std::string& message, const char* expression, const char* file,
                 int line) {
    throw Error(kind, message, expression, file, line);
}

}  // namespace atelier
