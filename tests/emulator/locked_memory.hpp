#pragma once

#include <cstddef>
#include <type_traits>

namespace emulator {

/// Device memory that only kernels may touch while it is locked: a plain read or write by the host faults.
void* allocate(std::size_t bytes, bool host_may_touch);
void release(void* memory);
/// Throws Error where `address` (null: none) is host memory, or no multiple of `alignment`: on a device a kernel, or a library, would fault.
void check_device_address(const void* address, std::size_t alignment = 1);
/// The same for what a kernel is launched with, where that is an address.
template <typename Argument>
void check_argument(const Argument& argument) {
    if constexpr (std::is_pointer_v<Argument>) check_device_address(argument, alignof(std::remove_pointer_t<Argument>));
}
/// Lets the calling scope touch device memory as a copy engine or a library does.
class Access {
  public:
    Access();
    ~Access();
    Access(const Access&) = delete;
};

}  // namespace emulator
