#pragma once

namespace atelier::stage {

/// Whether files may be written on threads of their own beside a stage's work. Where this HDF5 is not safe for threads they may not; the
/// log of rank 0 says so once.
bool writes_in_background();

}  // namespace atelier::stage
