#include "comm/run_main.hpp"

#include "core/memory.hpp"
#include "core/process.hpp"

namespace atelier::comm {

int run_main(int argc, char** argv, const char* program, const std::function<int(Communicator&, int, char**)>& body) {
    std::unique_ptr<Communicator> world;
    return_freed_memory();
    try {
        world = make_world(&argc, &argv);
        return body(*world, argc, argv);
    } catch (...) {
        const int code = report_failure(program);
        if (world && world->size() > 1) world->abort(code);
        return code;
    }
}

}  // namespace atelier::comm
