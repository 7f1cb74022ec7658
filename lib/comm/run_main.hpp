#pragma once

#include <functional>

#include "comm/communicator.hpp"

namespace atelier::comm {

/// Runs a program's body on all ranks and turns whatever it throws into one message on standard error and the documented
/// exit code (docs/errors.md). A rank that fails while others run ends them all: nobody is left waiting in a collective.
int run_main(int argc, char** argv, const char* program, const std::function<int(Communicator&, int, char**)>& body);

}  // namespace atelier::comm
