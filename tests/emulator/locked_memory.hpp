#pragma once

#include <cstddef>

namespace emulator {

/// Device memory that only kernels may touch while it is locked: a plain read or write by the host faults.
void* allocate(std::size_t bytes, bool host_may_touch);
void release(void* memory);
/// Lets the calling scope touch device memory as a copy engine or a library does.
class Access {
  public:
    Access();
    ~Access();
    Access(const Access&) = delete;
};

}  // namespace emulator
