#include "stage/background.hpp"

#include <mutex>

#include "core/process.hpp"
#include "core/progress.hpp"
#include "io/hdf5.hpp"

namespace atelier::stage {

bool writes_in_background() {
    static std::once_flag said;
    const bool can = io::hdf5::is_thread_safe();
    if (!can && process().rank == 0)
        std::call_once(said, [] {
            log_line("this HDF5 is not built for several threads: the stage waits while shards and training states are written");
        });
    return can;
}

}  // namespace atelier::stage
