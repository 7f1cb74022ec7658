#pragma once

#include "core/error.hpp"

namespace atelier::ops::cuda {

/// Takes this process's device and gives its name. Throws Error(usage) where there is no driver, no device, or one that this build has
/// no code for.
const char* open_device();

/// Which of the `count` devices that a rank sees is its own; `local`: its place among its host's ranks. The launcher shows each rank one device, its
/// own, or all of them: then two ranks would share one where there are more ranks than devices. Throws Error(usage) there.
inline int device_of_rank(int local, int count) {
    if (count == 1) return 0;
    ATELIER_CHECK_USAGE(local < count,
                        "compute.device = \"cuda\": this is rank {} of its host (from 0), which shows {} devices, one a rank: start fewer ranks on a host "
                        "(slurm.<stage>.ranks, nodes, gpus_per_node)", local, count);
    return local;
}

}  // namespace atelier::ops::cuda
