#pragma once

#include <memory>
#include <string>
#include <vector>

#include "stage/context.hpp"

namespace atelier::stage {

/// What a stage's command line names besides --run.
enum class Names { nothing, task, policy_and_iteration, task_and_round, round };

/// Options of one program only.
struct ExtraOptions {
    std::vector<std::string>* models = nullptr;         ///< --model NAME=DIR, repeated
    std::vector<std::string>* guided_models = nullptr;  ///< --guided-model NAME=DIR, repeated
    std::int64_t* limit = nullptr;               ///< --limit N
};

/// Parses the command line, reads RUN/config.toml, sets threads. Throws Error(usage) for
/// options and names that don't fit the configuration. Nothing: the help text was asked for and
/// printed.
std::unique_ptr<Context> make_context(const char* program, const char* what, Names names, int argc,
                                      char** argv, comm::Communicator& world,
                                      const ExtraOptions& extra = {});

}  // namespace atelier::stage
