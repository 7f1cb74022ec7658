#include "stage/run_main.hpp"

#include "comm/run_main.hpp"
#include "core/signals.hpp"

namespace atelier::stage {

int run_main(int argc, char** argv, const char* program, const char* what, Names names,
             const std::function<int(const Context&)>& body, const ExtraOptions& extra) {
    // Before MPI starts: a rank that a signal ends while it introduces itself to Open MPI 4.1's launcher can leave the
    // launcher waiting for ever, with no rank alive.
    catch_signals();
    return comm::run_main(argc, argv, program, [&](comm::Communicator& world, int count, char** arguments) {
        const auto context = make_context(program, what, names, count, arguments, world, extra);
        return context ? body(*context) : 0;
    });
}

}  // namespace atelier::stage
