#pragma once

#include <string>

namespace atelier {

/// Who this process is: shown in every error and log line. Rank 0 of 1 until a communicator says otherwise.
struct Process {
    int rank = 0;
    int world_size = 1;
    std::string host;  ///< short host name
};

/// The one process-wide record; written once by the communicator at start, read everywhere.
Process& process();

/// In a handler: says on standard error what the exception says, and returns its exit code (docs/errors.md).
int report_failure(const char* program);

}  // namespace atelier
