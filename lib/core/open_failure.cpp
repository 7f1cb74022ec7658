#include "core/open_failure.hpp"

#include <cerrno>

namespace atelier {

ErrorKind kind_of_failed_open(int reason) {
    const bool leads_nowhere = reason == ENOENT || reason == ENOTDIR || reason == ENAMETOOLONG || reason == ELOOP;
    return leads_nowhere ? ErrorKind::input : ErrorKind::io;
}

}  // namespace atelier
