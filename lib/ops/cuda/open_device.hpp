#pragma once

namespace atelier::ops::cuda {

/// Takes this process's device and gives its name. Throws Error(usage) where there is no driver, no device, or one that this build has
/// no code for.
const char* open_device();

}  // namespace atelier::ops::cuda
