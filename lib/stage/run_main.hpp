#pragma once

#include <functional>

#include "stage/options.hpp"

namespace atelier::stage {

/// A stage's program: catches signals before anything else, starts the ranks, makes the context from the command line and
/// runs the body on every rank. Its exit code is the body's, or that of what it threw (docs/errors.md).
int run_main(int argc, char** argv, const char* program, const char* what, Names names,
             const std::function<int(const Context&)>& body, const ExtraOptions& extra = {});

}  // namespace atelier::stage
