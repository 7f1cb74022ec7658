#include "core/process.hpp"

#include <unistd.h>

#include <cstdio>
#include <exception>
#include <filesystem>

#include "core/error.hpp"

namespace atelier {

Process& process() {
    static Process instance = [] {
        Process p;
        char name[256] = {};
        if (gethostname(name, sizeof(name) - 1) == 0) p.host = name;
        if (auto dot = p.host.find('.'); dot != std::string::npos) p.host.resize(dot);
        return p;
    }();
    return instance;
}

int report_failure(const char* program) {
    int code = static_cast<int>(ErrorKind::internal);
    std::string message;
    try {
        throw;
    } catch (const Error& e) {
        code = e.exit_code();
        message = e.what();
    } catch (const std::filesystem::filesystem_error& e) {  // its text names the file and the system's reason
        code = static_cast<int>(ErrorKind::io);
        message = e.what();
    } catch (const std::exception& e) {
        message = e.what();
    }
    std::fprintf(stderr, "%s: %s\n", program, message.c_str());
    std::fflush(nullptr);
    return code;
}

}  // namespace atelier
