#include "comm/run_main.hpp"

#include <cstdio>
#include <exception>
#include <filesystem>
#include <string>

#include "core/error.hpp"
#include "core/memory.hpp"

namespace atelier::comm {

int run_main(int argc, char** argv, const char* program, const std::function<int(Communicator&, int, char**)>& body) {
    std::unique_ptr<Communicator> world;
    int code = 0;
    std::string message;
    return_freed_memory();
    try {
        world = make_world(&argc, &argv);
        return body(*world, argc, argv);
    } catch (const Error& e) {
        code = e.exit_code();
        message = e.what();
    } catch (const std::filesystem::filesystem_error& e) {  // its text names the file and the system's reason
        code = static_cast<int>(ErrorKind::io);
        message = e.what();
    } catch (const std::exception& e) {
        code = static_cast<int>(ErrorKind::internal);
        message = e.what();
    }
    std::fprintf(stderr, "%s: %s\n", program, message.c_str());
    std::fflush(nullptr);
    if (world && world->size() > 1) world->abort(code);
    return code;
}

}  // namespace atelier::comm
