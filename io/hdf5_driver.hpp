#pragma once

#include <hdf5.h>

#include <cstddef>

#if H5_VERSION_GE(1, 13, 0)
#include <H5FDdevelop.h>
#endif

// What our file drivers for HDF5 share.
namespace atelier::io::hdf5 {

/// A driver's description but for its functions. `number`: its own (from 1.13 on).
H5FD_class_t describe_driver(const char* name, int number, H5F_close_degree_t close_degree);

/// Reads `size` bytes from an address on; what lies beyond the file's end is zero. Returns errno, or 0.
int read_at(int descriptor, haddr_t address, std::size_t size, void* out);

}  // namespace atelier::io::hdf5
